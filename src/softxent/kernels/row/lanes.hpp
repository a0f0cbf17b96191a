// What the narrow kernel adds up across the classes of a tile, and what its phases know of the rows in the lanes.
#pragma once

#include <cstdint>

#include "../math/exp.hpp"
#include "target.hpp"

namespace softxent {

// For every lane of a tile, the sum over its n classes minus taken_off, with the bits of the wide kernel's sums.
// term(lane, c) is what class c adds, a Vec for the rows from `lane` on. `rounded` gets what `values` round off.
template <class S, class F>
SOFTXENT_INLINE void lane_sums_of(F term, std::ptrdiff_t n, const S *taken_off, double *values, double *rounded) {
    constexpr int step = Vec<S>::lanes, block = Block<S>::lanes;
    const std::ptrdiff_t blocks_end = n - n % block;
    const int count = n < step ? static_cast<int>(n) : step;
    decltype(Sum<S>::sum) slots[step];
    for (int lane = 0; lane < Lanes<S>::lanes; lane += step) {
        const auto four = [&](std::ptrdiff_t c) {
            return (term(lane, c) + term(lane, c + 2 * step)) + (term(lane, c + step) + term(lane, c + 3 * step));
        };
        for (int i = 0; i < count; ++i) {
            Sum<S> sum(blocks_end > 0 ? four(i) : term(lane, i));
            std::ptrdiff_t c = i + (blocks_end > 0 ? block : step);
            for (; c < blocks_end; c += block) sum.add(four(c));
            for (; c < n; c += step) sum.add(term(lane, c));
            slots[i] = sum.sum;
        }
        Sum<S>::values_minus(slots, count, taken_off + lane, values + lane, rounded + lane);
    }
}
template <class S> SOFTXENT_INLINE Vec<S> all_but(const Vec<S> &left_out, const S *v, std::ptrdiff_t c) {
    return select_equal(Vec<S>(static_cast<double>(c)), left_out, Vec<S>(0), load(v + c * Lanes<S>::lanes));
}
// The sums of v, without the class that each lane leaves out.
template <class S>
void lane_sums(const S *v, std::ptrdiff_t n, const S *left_out, const S *taken_off, double *values, double *rounded) {
    lane_sums_of([=](int lane, std::ptrdiff_t c) { return all_but(load(left_out + lane), v + lane, c); }, n, taken_off, values, rounded);
}
// The sums of m - x.
template <class S> void lane_gap_sums(const S *x, std::ptrdiff_t n, const S *m, double *values) {
    constexpr int lanes = Lanes<S>::lanes;
    const S nothing[lanes] = {};
    double rounded[lanes];
    lane_sums_of([=](int lane, std::ptrdiff_t c) { return load(m + lane) - load(x + lane + c * lanes); }, n, nothing, values, rounded);
}
// The sums of e (m - x), for the exponentials e of the logits x.
template <class S> void lane_entropy_sums(const S *e, const S *x, std::ptrdiff_t n, const S *m, double *values) {
    constexpr int lanes = Lanes<S>::lanes;
    const S nothing[lanes] = {};
    double rounded[lanes];
    lane_sums_of([=](int lane, std::ptrdiff_t c) {
        return entropy_terms(load(e + lane + c * lanes), load(x + lane + c * lanes), load(m + lane));
    }, n, nothing, values, rounded);
}
// For distributions t: the sums of t (m - x), and those of t without the class that each lane leaves out, with what these
// round off in weights_low.
template <class S>
void lane_gaps(
    const S *x, const S *t, std::ptrdiff_t n, const S *m, const S *left_out, double *gaps, double *weights, double *weights_low
) {
    constexpr int step = Vec<S>::lanes, lanes = Lanes<S>::lanes;
    const int count = n < step ? static_cast<int>(n) : step;
    const S nothing[step] = {};
    double rounded[step];
    decltype(Sum<S>::sum) gap_slots[step], weight_slots[step];
    for (int lane = 0; lane < lanes; lane += step, x += step, t += step) {
        Vec<S> left = load(left_out + lane);
        auto largest = load_wide(m + lane);
        for (int i = 0; i < count; ++i) {
            Sum<S> gap, weight;
            for (std::ptrdiff_t c = i; c < n; c += step) {
                gap.template add_gaps<true>(load_wide(t + c * lanes), load_wide(x + c * lanes), largest);
                weight.add(all_but(left, t, c));
            }
            gap_slots[i] = gap.sum;
            weight_slots[i] = weight.sum;
        }
        Sum<S>::values_minus(gap_slots, count, nothing, gaps + lane, rounded);
        Sum<S>::values_minus(weight_slots, count, nothing, weights + lane, weights_low + lane);
    }
}

// As row_mass and blend_row, for the distributions of a tile.
template <class S> void lane_masses(const S *t, std::ptrdiff_t n, double *masses) {
    using V = Vec<double>;
    for (int lane = 0; lane < Lanes<S>::lanes; lane += V::lanes)
        store(masses + lane, mass_of<V>([=](std::ptrdiff_t c) { return load_as_double(t + lane + c * Lanes<S>::lanes); }, n));
}
template <class S>
void blend_lanes(S *t, std::ptrdiff_t n, double smoothing, const double *masses, const S *allowed, const S *class_weight) {
    using V = Vec<double>;
    constexpr int lanes = Lanes<S>::lanes;
    for (int lane = 0; smoothing != 0 && lane < lanes; lane += V::lanes) {
        V n_allowed(allowed == nullptr ? static_cast<double>(n) : 0);
        for (std::ptrdiff_t c = 0; allowed != nullptr && c < n; ++c) n_allowed = n_allowed + load_as_double(allowed + lane + c * lanes);
        V share = share_of_each(smoothing, n_allowed, load(masses + lane)), amount = share;
        for (std::ptrdiff_t i = lane; i < n * lanes; i += lanes) {
            if (allowed != nullptr) amount = share * load_as_double(allowed + i);
            store(t + i, smoothed(smoothing, load_as_double(t + i), amount));
        }
    }
    for (std::ptrdiff_t c = 0; class_weight != nullptr && c < n; ++c)
        store(t + c * lanes, load_lanes(t + c * lanes) * Lanes<S>(static_cast<double>(class_weight[c])));
}

// The largest absolute value of n numbers; NaNs are ignored.
inline double largest_size(const double *v, std::ptrdiff_t n) {
    constexpr std::ptrdiff_t step = Vec<double>::lanes;
    Vec<double> zero(0);
    Vec<double> size = zero;
    for (std::ptrdiff_t i = 0; i < n; i += step) {
        Vec<double> x = load_first(v + i, n - i < step ? n - i : step, 0);
        size = maximum(maximum(x, zero - x), size);
    }
    return largest(size);
}

// Whether all numbers for the lanes are finite, and so small that their sum is, too.
inline bool are_finite(const double *v, std::ptrdiff_t n) {
    Vec<double> sum(0);
    for (std::ptrdiff_t i = 0; i < n; i += Vec<double>::lanes) sum = sum + load(v + i);
    return all_equal(sum - sum, Vec<double>(0));
}

// What the phases of the narrow kernel know of the rows in the lanes; see narrow.pxi.
template <class S> struct alignas(64) LaneGroup {
    static constexpr int lanes = Lanes<S>::lanes;
    S m[lanes], e_m[lanes];                                    // the largest logit, and its exponential
    S argmax[lanes];                                           // as in RowSums; a float holds every class there can be
    double rest[lanes];                                        // as in RowSums
    S label_class[lanes], label_logit[lanes];                  // the label as a number, and the logit there
    S label_amount[lanes];                                     // what the target gives to the label
    S factor[lanes], offset[lanes], minus[lanes];              // of the Gradient
    S own_class[lanes], own_grad[lanes];                       // the class whose gradient is set by itself, -1 for none
    LanesUnit<S> unit;
    std::int64_t *label;                                       // last, so that the arrays start at cache lines
};

// Where the tiles of a group of rows stand: one after the other, as far as a call needs them, null where it does not.
template <class S> struct Tiles {
    S *x;                                                      // logits, then exponentials, then the gradient
    S *t;                                                      // distributions, or targets that are built
    S *slope;                                                  // allowed classes, then the derivative of the logits
    S *kept_logits;                                            // for the diagnostics
    S *staging;                                                // rows on their way, and a row for lanes without one
};
static_assert(TILE_BYTES / LANE_BYTES < 1 << 24, "class numbers are exact in the lanes of a float");
static_assert(sizeof(Lanes<float>) == LANE_BYTES && sizeof(Lanes<double>) == LANE_BYTES, "what tiles are planned with");

}  // namespace softxent
