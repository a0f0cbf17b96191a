// How groups of the middle kernel overlap. While it makes the exponentials of a group, it also makes the results of the group
// before, and finds the largest logits of the group after, or makes its logits: exponentials wait for arithmetic, the other two
// sweeps for memory.
#pragma once

#include <algorithm>
#include <type_traits>

#include "lanes.hpp"

namespace softxent {

// A group of rows: where they are, and what is found for them.
template <class S> struct RowGroup {
    GroupRows<S> rows;
    LaneGroup<S> group;
    LaneResults<S> results;
    std::int64_t label[Lanes<S>::lanes];
};

// The group that is visited, and those beside it.
template <class S> struct Pipeline {
    static constexpr int lanes = Lanes<S>::lanes;
    bool has_results = false;                                  // for a whole call: with_results knows its result
    bool may_wait = false;                                     // for a whole call: the last sweep over a group may wait
    bool waits = false;                                        // that over the group before does
    bool turn = false;                                         // which of the two is visited; the other is the group before
    std::ptrdiff_t stop = 0;                                   // where the rows end that this thread visits
    std::ptrdiff_t next = -1, n_next = 0;                      // the largest logits of n_next rows from `next` on are in m
    S m[lanes];
    bool all_finite = true;                                    // those logits, if they were made
    S *staging = nullptr, *next_staging = nullptr;             // where logits are made ahead, of this group and of the next
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

// Whether a class that is not allowed would get another result than it has to.
template <class S> SOFTXENT_INLINE bool need_masks(const Job &job, const RowGroup<S> &of) {
    bool need = false;
    with_results(job.result, of, [&](auto result_of, const S *const *, double masked) {
        for (std::ptrdiff_t lane = 0; lane < of.rows.count; ++lane)
            need |= needed_mask<S>(allowed_of(job, of.rows, lane), result_of(lane), masked) != nullptr;
    });
    return need;
}

SOFTXENT_INLINE void set_sum_of_row(const LaneNumbers &numbers, std::ptrdiff_t lane, const Carried<double> &R) {
    numbers.R[lane] = R.sum;
    numbers.R_low[lane] = R.lost;
}
// Calls f(std::true_type) if `gaps` is not null, f(std::false_type) if it is.
template <class F> SOFTXENT_INLINE void with_gaps(const double *gaps, F f) {
    gaps != nullptr ? f(std::true_type()) : f(std::false_type());
}
// The exponentials of the row in a lane, which are stored if `stores`, and R; `gaps` gets the sum of m - x if ADDS_GAPS.
// Logits `prefetch_distance` on are prefetched, unless that is 0. `before` and `after` the exponentials are called as by
// exp_sum_and.
template <bool ADDS_GAPS, class S, class F, class A>
SOFTXENT_INLINE void take_exponentials_of_row(
    const RowGroup<S> &of, std::ptrdiff_t lane, bool stores, std::ptrdiff_t prefetch_distance, const LaneNumbers &numbers,
    double *gaps, F before, A after
) {
    GapSum<S> gap(of.rows.x[lane], of.group.m[lane]);
    const Carried<double> R = exp_sum_and(
        of.rows.x[lane], stores ? of.rows.made[lane] : nullptr, of.rows.n, static_cast<std::ptrdiff_t>(of.group.argmax[lane]),
        unit_of(of.group, lane), prefetch_distance, after, [&](auto p, std::ptrdiff_t i, auto count) {
            before(p, i, count);
            if constexpr (ADDS_GAPS) gap(p, i, count);
        });
    set_sum_of_row(numbers, lane, R);
    double low;
    if constexpr (ADDS_GAPS) gaps[lane] = gap.total.value().minus(0, &low);
}
// How far the logits of the next group are from those of a row, to prefetch them; 0 not to.
template <class S> SOFTXENT_INLINE std::ptrdiff_t to_next_group(const GroupRows<S> &rows, std::ptrdiff_t lane) {
    if (!rows.prefetching) return 0;
    const std::ptrdiff_t bytes = rows.given[lane] + rows.bytes_to_next - reinterpret_cast<const char *>(rows.x[lane]);
    return bytes / static_cast<std::ptrdiff_t>(sizeof(S));
}
template <class S>
SOFTXENT_INLINE void take_exponentials_of_rows(const RowGroup<S> &of, bool stores, const LaneNumbers &numbers, double *gaps) {
    with_gaps(gaps, [&](auto adds_gaps) {
        for (std::ptrdiff_t lane = 0; lane < of.rows.count; ++lane)
            take_exponentials_of_row<adds_gaps>(of, lane, stores, to_next_group(of.rows, lane), numbers, gaps, Nothing(), Nothing());
    });
}

// What is found in a row of the next group, a Pack at a time: its largest logit.
template <class S> struct NextMaximum {
    static constexpr bool STORES = false;
    const S *x;
    Vec<S> most{-INF};                                         // one for all of a Block, as registers are few; NaNs are ignored

    explicit NextMaximum(const S *x) : x(x) {}
    template <class P> SOFTXENT_INLINE void add(const P &v) {
        constexpr int in_vec = Vec<S>::registers;
        repeat<P::registers / in_vec>([&](auto j) { most = maximum(registers_from<in_vec, j * in_vec>(v), most); });
    }
    template <class P, class Count> SOFTXENT_INLINE void operator()(P p, std::ptrdiff_t i, Count count) {
        add(load_some(p, x + i, count, -INF));
    }
    SOFTXENT_INLINE bool all_finite() const { return true; }
};
// The same where logits z are made: see make_logits.
template <class S, class Maker> struct NextLogits : NextMaximum<S> {
    static constexpr bool STORES = true;
    Maker maker;
    const unsigned char *allowed;
    S *z;
    const double fill;

    NextLogits(const Maker &maker, const S *x, const unsigned char *allowed, S *z)
        : NextMaximum<S>(x), maker(maker), allowed(allowed), z(z), fill(static_cast<double>(x[0])) {}
    template <class P, class Count> SOFTXENT_INLINE void operator()(P p, std::ptrdiff_t i, Count count) {
        P v;
        maker.make(&v, static_cast<P *>(nullptr), this->x, allowed, i, count, fill);
        store_some(z + i, count, v);
        this->add(v);
    }
    SOFTXENT_INLINE bool all_finite() const { return maker.all_finite(); }
};
// The row of the next group that follows the row in a lane. If there is none, the row itself takes its place.
template <class S> SOFTXENT_INLINE const S *next_row(const RowGroup<S> &of, const Pipeline<S> &line, std::ptrdiff_t lane) {
    return reinterpret_cast<const S *>(of.rows.given[lane] + (lane < line.n_next ? of.rows.bytes_to_next : 0));
}
template <class S, class Maker>
SOFTXENT_INLINE NextLogits<S, Maker> next_logits(
    const Job &job, const RowGroup<S> &of, const Pipeline<S> &line, const Maker &maker, std::ptrdiff_t lane
) {
    const bool exists = lane < line.n_next, is_staged = of.rows.made == of.rows.staged;
    const unsigned char *allowed = allowed_of(job, of.rows, lane);
    if (allowed != nullptr && exists) allowed += of.rows.count * job.allowed.step;
    S *z = line.next_staging + lane * of.rows.n;
    if (exists && !is_staged) z = reinterpret_cast<S *>(of.rows.stored[lane] + of.rows.count * job.grad.step);
    return {maker, next_row(of, line, lane), allowed, z};
}

// What the rows of the group before get meanwhile, a Pack at a time, from the numbers `from`.
template <class S, class R> struct ResultsBefore {
    static constexpr bool EXIST = true;
    const R result;
    const S *from;
    S *to;
    Block<S> block;
    Vec<S> vec;

    ResultsBefore(const R &result, const S *from, S *to) : result(result), from(from), to(to) {}
    SOFTXENT_INLINE Block<S> &made(const Block<S> &) { return block; }
    SOFTXENT_INLINE Vec<S> &made(const Vec<S> &) { return vec; }
    template <class P, class Count> SOFTXENT_INLINE void make(P p, std::ptrdiff_t i, Count count) {
        P v = result.of(load_some(p, from + i, count, 0));
        if constexpr (KEEPS_BLOCKS<S>) made(p) = v;
        else store_some(to + i, count, v);
    }
    template <class P, class Count> SOFTXENT_INLINE void store(P p, std::ptrdiff_t i, Count count) {
        if constexpr (KEEPS_BLOCKS<S>) store_some(to + i, count, made(p));
    }
};
struct NoResults {
    static constexpr bool EXIST = false;
    template <class P, class Count> SOFTXENT_INLINE void make(const P &, std::ptrdiff_t, Count) {}
    template <class P, class Count> SOFTXENT_INLINE void store(const P &, std::ptrdiff_t, Count) {}
};

// The exponentials of a row, what next_of(lane) finds, and `results`.
template <bool ADDS_GAPS, class S, class N, class R>
SOFTXENT_INLINE void take_exponentials_and_next(
    const RowGroup<S> &of, std::ptrdiff_t lane, bool stores, Pipeline<S> *line, const LaneNumbers &numbers, double *gaps, N next_of,
    R results
) {
    constexpr std::ptrdiff_t BEYOND = 16384;                   // bytes, from what is loaded to what is prefetched (measured)
    const std::ptrdiff_t beyond = of.rows.prefetching ? BEYOND / static_cast<std::ptrdiff_t>(sizeof(S)) : 0;
    auto next = next_of(lane);
    // If there are registers for it, results are stored after the logits are loaded, and so is what `next` stores: where groups
    // are a multiple of 4096 bytes apart, a load waits for a store to the same place of another row. A maximum stores nothing
    // and comes first, but last if there are no results (measured).
    constexpr bool next_first = R::EXIST && !decltype(next)::STORES;
    const auto before = [&](auto p, std::ptrdiff_t i, auto count) {
        if constexpr (next_first) next(p, i, count);
        results.make(p, i, count);
    };
    const auto after = [&](auto p, std::ptrdiff_t i, auto count) {
        results.store(p, i, count);
        if constexpr (!next_first) next(p, i, count);
    };
    take_exponentials_of_row<ADDS_GAPS>(of, lane, stores, to_next_group(of.rows, lane) + beyond, numbers, gaps, before, after);
    line->m[lane] = static_cast<S>(largest(next.most));
    line->all_finite &= next.all_finite();
}
// For the rows from `start` on.
template <bool ADDS_GAPS, class S, class N>
SOFTXENT_INLINE void take_exponentials_and_next_rows(
    const RowGroup<S> &of, std::ptrdiff_t start, bool stores, Pipeline<S> *line, const LaneNumbers &numbers, double *gaps, N next_of
) {
    for (std::ptrdiff_t lane = start; lane < of.rows.count; ++lane)
        take_exponentials_and_next<ADDS_GAPS>(of, lane, stores, line, numbers, gaps, next_of, NoResults());
}
// For the rows up to `stop`. Those of the group before get their results: what result_of(lane) makes of the numbers at
// from[lane]. This is not inline: in a function of its own, more of it stays in registers.
template <bool ADDS_GAPS, class S, class N, class F>
void take_exponentials_and_results(
    const RowGroup<S> &of, std::ptrdiff_t stop, bool stores, Pipeline<S> *line, const LaneNumbers &numbers, double *gaps, N next_of,
    const RowGroup<S> &before, const S *const *from, F result_of
) {
    for (std::ptrdiff_t lane = 0; lane < stop; ++lane) {
        auto result = result_of(lane);
        // A label that is smoothed has gaps. Set to what it is, this is a constant in the loop.
        if constexpr (std::is_same_v<decltype(result), Gradient<double>>) result.smoothed = ADDS_GAPS;
        take_exponentials_and_next<ADDS_GAPS>(
            of, lane, stores, line, numbers, gaps, next_of,
            ResultsBefore<S, decltype(result)>(result, from[lane], before.rows.made[lane]));
    }
}
// For all rows. Then no group waits.
template <bool ADDS_GAPS, class S, class N>
SOFTXENT_INLINE void take_exponentials_beside(
    const Job &job, const RowGroup<S> &of, bool stores, Pipeline<S> *line, const LaneNumbers &numbers, double *gaps, N next_of
) {
    const RowGroup<S> &before = line->groups[!line->turn];
    const std::ptrdiff_t n_before = line->waits ? before.rows.count : 0, both = std::min(n_before, of.rows.count);
    line->all_finite = true;
    if (both > 0) {
        with_results(job.result, before, [&](auto result_of, const S *const *from, double) {
            take_exponentials_and_results<ADDS_GAPS>(of, both, stores, line, numbers, gaps, next_of, before, from, result_of);
        });
    }
    for (std::ptrdiff_t lane = 0; lane < both; ++lane) set_own_result(job, before, lane);
    take_results_of_lanes(job, before, both, n_before);
    take_exponentials_and_next_rows<ADDS_GAPS>(of, both, stores, line, numbers, gaps, next_of);
    line->waits = false;
}
template <bool ADDS_GAPS, class S>
SOFTXENT_INLINE void take_exponentials_and_maxima(
    const Job &job, const RowGroup<S> &of, bool stores, Pipeline<S> *line, const LaneNumbers &numbers, double *gaps
) {
    take_exponentials_beside<ADDS_GAPS>(job, of, stores, line, numbers, gaps, [&](std::ptrdiff_t lane) {
        return NextMaximum<S>(next_row(of, *line, lane));
    });
}
// The same with options, in a function of its own: what most calls do has more registers then.
template <class S>
void take_exponentials_with_options(
    const Job &job, const RowGroup<S> &of, bool stores, Pipeline<S> *line, const LaneNumbers &numbers, double *gaps
) {
    const auto make = [&](auto maker) {
        take_exponentials_beside<false>(job, of, stores, line, numbers, gaps, [&](std::ptrdiff_t lane) {
            return next_logits(job, of, *line, maker, lane);
        });
    };
    if (gaps != nullptr) {
        take_exponentials_and_maxima<true>(job, of, stores, line, numbers, gaps);
    } else if (job.transform.temperature != 1) {
        make(LogitMaker<S, true, false>(job.transform));
    } else {
        make(LogitMaker<S, false, false>(job.transform));
    }
}
template <class S>
SOFTXENT_INLINE void take_exponentials_in_line(
    const Job &job, const RowGroup<S> &of, bool stores, Pipeline<S> *line, const LaneNumbers &numbers, double *gaps
) {
    if (job.transforms || gaps != nullptr) return take_exponentials_with_options(job, of, stores, line, numbers, gaps);
    take_exponentials_and_maxima<false>(job, of, stores, line, numbers, gaps);
}

}  // namespace softxent
