// How groups of the middle kernel overlap. While it makes the exponentials of a group, it also makes the results of the group
// before, and finds the largest logits of the group after: exponentials wait for arithmetic, the other two sweeps for memory.
#pragma once

#include <algorithm>

#include "lanes.hpp"

namespace softxent {

// A group of rows: where they are, and what is found for them.
template <class S> struct RowGroup {
    GroupRows<S> rows;
    LaneGroup<S> group;
    LaneResults<S> results;
    std::int64_t label[Lanes<S>::lanes];
};

// The group that is visited, and those beside it. No class of theirs is masked: where there is a mask, logits are made, and
// groups do not overlap.
template <class S> struct Pipeline {
    static constexpr int lanes = Lanes<S>::lanes;
    bool has_results = false;                                  // for a whole call: with_results knows its result
    bool may_wait = false;                                     // for a whole call: the last sweep over a group may wait
    bool waits = false;                                        // that over the group before does
    bool turn = false;                                         // which of the two is visited; the other is the group before
    std::ptrdiff_t stop = 0;                                   // where the rows end that this thread visits
    std::ptrdiff_t next = -1, n_next = 0;                      // the largest logits of n_next rows from `next` on are in m
    S m[lanes];
    RowGroup<S> groups[2];
};

// Calls f(what makes the results of the row in a lane, the numbers of each row that it makes them of, what a class gets that
// is not allowed). The result is SOFTMAX, LOG_SOFTMAX, or the GRADIENT of a label.
template <class S, class F> SOFTXENT_INLINE void with_results(Result result, const RowGroup<S> &of, F f) {
    if (result == LOG_SOFTMAX) {
        f([&](std::ptrdiff_t lane) { return of_lane(of.results.logs, lane); }, of.rows.x, -INF);
    } else if (result == SOFTMAX) {
        f([&](std::ptrdiff_t lane) { return of_lane(of.results.probabilities, lane); }, of.rows.made, 0.0);
    } else {
        f([&](std::ptrdiff_t lane) { return of_lane(of.group.gradient, lane); }, of.rows.made, 0.0);
    }
}

template <class S> SOFTXENT_INLINE const unsigned char *allowed_of(const Job &job, const GroupRows<S> &rows, std::ptrdiff_t lane) {
    return job.has_allowed ? rows.allowed[lane] : nullptr;
}

// The class whose result is set by itself, after the last sweep over the row.
template <class S> SOFTXENT_INLINE void set_own_result(const Job &job, const RowGroup<S> &of, std::ptrdiff_t lane) {
    const std::ptrdiff_t c = of.group.label[lane];
    S *to = of.rows.made[lane];
    if (job.result == SOFTMAX) {
        const S own = lane_of(of.results.probabilities.at_top, lane);
        if (own == own) to[c] = own;
    } else if (job.result == GRADIENT) {
        const unsigned char *allowed = allowed_of(job, of.rows, lane);
        if (allowed == nullptr || allowed[c] != 0) to[c] = lane_of(of.group.own_grad, lane);
    }
}
// The last sweep over the rows in the lanes [start, stop).
template <class S>
SOFTXENT_INLINE void take_results_of_lanes(const Job &job, const RowGroup<S> &of, std::ptrdiff_t start, std::ptrdiff_t stop) {
    with_results(job.result, of, [&](auto result_of, const S *const *from, double masked) {
        for (std::ptrdiff_t lane = start; lane < stop; ++lane) {
            take_result_in(result_of(lane), from[lane], allowed_of(job, of.rows, lane), masked, of.rows.made[lane], of.rows.n);
            set_own_result(job, of, lane);
        }
    });
}

SOFTXENT_INLINE void set_sum_of_row(const LaneNumbers &numbers, std::ptrdiff_t lane, const Carried<double> &R) {
    numbers.R[lane] = R.sum;
    numbers.R_low[lane] = R.lost;
}
// The exponentials of the row in a lane, which are stored if `stores`, and R. Logits `prefetch_distance` on are prefetched,
// unless that is 0. beside(p, i, count) is called as by `sweep`.
template <class S, class F>
SOFTXENT_INLINE void take_exponentials_of_row(
    const RowGroup<S> &of, std::ptrdiff_t lane, bool stores, std::ptrdiff_t prefetch_distance, const LaneNumbers &numbers, F beside
) {
    const Carried<double> R = exp_sum_and(
        of.rows.x[lane], stores ? of.rows.made[lane] : nullptr, of.rows.n, static_cast<std::ptrdiff_t>(of.group.argmax[lane]),
        unit_of(of.group, lane), prefetch_distance, Nothing(), beside);
    set_sum_of_row(numbers, lane, R);
}
// How far the logits of the next group are from those of a row, to prefetch them; 0 not to.
template <class S> SOFTXENT_INLINE std::ptrdiff_t to_next_group(const GroupRows<S> &rows, std::ptrdiff_t lane) {
    if (!rows.prefetching) return 0;
    const std::ptrdiff_t bytes = rows.given[lane] + rows.bytes_to_next - reinterpret_cast<const char *>(rows.x[lane]);
    return bytes / static_cast<std::ptrdiff_t>(sizeof(S));
}
template <class S> SOFTXENT_INLINE void take_exponentials_of_rows(const RowGroup<S> &of, bool stores, const LaneNumbers &numbers) {
    for (std::ptrdiff_t lane = 0; lane < of.rows.count; ++lane)
        take_exponentials_of_row(of, lane, stores, to_next_group(of.rows, lane), numbers, Nothing());
}

// The same for a row, and the largest logit of one of the next group. If there is none, the row itself takes its place.
template <class S, class F>
SOFTXENT_INLINE void take_exponentials_and_maximum(
    const RowGroup<S> &of, std::ptrdiff_t lane, bool stores, Pipeline<S> *line, const LaneNumbers &numbers, F beside
) {
    constexpr std::ptrdiff_t BEYOND = 16384;                   // bytes, from what is loaded to what is prefetched (measured)
    const S *next = of.rows.x[lane];
    if (lane < line->n_next) next = reinterpret_cast<const S *>(of.rows.given[lane] + of.rows.bytes_to_next);
    Vec<S> most(-INF);                                         // one for all of a Block, as registers are few; NaNs are ignored
    std::ptrdiff_t distance = 0;
    if (of.rows.prefetching) distance = (of.rows.bytes_to_next + BEYOND) / static_cast<std::ptrdiff_t>(sizeof(S));
    take_exponentials_of_row(of, lane, stores, distance, numbers, [&](auto p, std::ptrdiff_t i, auto count) {
        const auto v = load_some(p, next + i, count, -INF);
        constexpr int in_vec = Vec<S>::registers;
        repeat<decltype(p)::registers / in_vec>([&](auto j) { most = maximum(registers_from<in_vec, j * in_vec>(v), most); });
        beside(p, i, count);
    });
    line->m[lane] = static_cast<S>(largest(most));
}
// For the rows from `start` on.
template <class S>
SOFTXENT_INLINE void take_exponentials_and_maxima(
    const RowGroup<S> &of, std::ptrdiff_t start, bool stores, Pipeline<S> *line, const LaneNumbers &numbers
) {
    for (std::ptrdiff_t lane = start; lane < of.rows.count; ++lane)
        take_exponentials_and_maximum(of, lane, stores, line, numbers, Nothing());
}
// For the rows up to `stop`. Those of the group before get their results: what result_of(lane) makes of the numbers at
// from[lane]. This is not inline: in a function of its own, more of it stays in registers.
template <class S, class F>
void take_exponentials_and_results(
    const RowGroup<S> &of, std::ptrdiff_t stop, bool stores, Pipeline<S> *line, const LaneNumbers &numbers,
    const RowGroup<S> &before, const S *const *from, F result_of
) {
    for (std::ptrdiff_t lane = 0; lane < stop; ++lane) {
        const auto result = result_of(lane);
        const S *source = from[lane];
        S *to = before.rows.made[lane];
        take_exponentials_and_maximum(of, lane, stores, line, numbers, [&](auto p, std::ptrdiff_t i, auto count) {
            store_some(to + i, count, result.of(load_some(p, source + i, count, 0)));
        });
    }
}
// For all rows. Then no group waits.
template <class S>
SOFTXENT_INLINE void take_exponentials_in_line(
    const Job &job, const RowGroup<S> &of, bool stores, Pipeline<S> *line, const LaneNumbers &numbers
) {
    const RowGroup<S> &before = line->groups[!line->turn];
    const std::ptrdiff_t n_before = line->waits ? before.rows.count : 0, both = std::min(n_before, of.rows.count);
    if (both > 0) {
        with_results(job.result, before, [&](auto result_of, const S *const *from, double) {
            take_exponentials_and_results(of, both, stores, line, numbers, before, from, result_of);
        });
    }
    for (std::ptrdiff_t lane = 0; lane < both; ++lane) set_own_result(job, before, lane);
    take_results_of_lanes(job, before, both, n_before);
    take_exponentials_and_maxima(of, both, stores, line, numbers);
    line->waits = false;
}

}  // namespace softxent
