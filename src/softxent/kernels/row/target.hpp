// The target of a row, and what a stretch of the row adds up of it.
#pragma once

#include <cstdint>

#include "../math/sums.hpp"

namespace softxent {

// The target of a row: a distribution over its classes, or `count` entries, an amount for a class each. All are multiplied
// by the weight of the class, unless there are no weights.
template <class S> struct Target {
    const S *distribution;
    const std::int64_t *indices;
    const S *probs;
    std::ptrdiff_t count;
    const S *class_weight;

    // Entry i, which is for class c.
    SOFTXENT_INLINE S amount(std::ptrdiff_t i, std::int64_t c) const {
        return class_weight == nullptr ? probs[i] : probs[i] * class_weight[c];
    }
};

// A row of the wide kernel: n logits, and where its numbers go.
template <class S> struct RowArrays {
    const S *x;                                                // the logits that the softmax is taken of
    S *e;                                                      // their exponentials: grad, a scratch row or x; null for the loss alone
    S *grad;                                                   // null for the loss alone
    std::ptrdiff_t n;
    Target<S> target;
};

// What a stretch of a row, or all of a row so far, adds up.
struct RowSums {
    Carried<double> R;                                         // the exponentials but that at `argmax`
    Carried<double> rest;                                      // t_j but that at `argmax`
    Carried<double> cross;                                     // t_j (m - x_j)
    Carried<double> gaps;                                      // m - x_j, if the target is to be smoothed
    bool far;                                                  // both are counted in the unit of FAR_STEP
    std::ptrdiff_t argmax;                                     // the first class with x_j = m and t_j != 0, -1 for none
    double t_at_argmax;

    // Assigned field by field: copying a zeroed struct would stall on store forwarding.
    SOFTXENT_INLINE void clear() {
        R.sum = R.lost = rest.sum = rest.lost = cross.sum = cross.lost = gaps.sum = gaps.lost = t_at_argmax = 0;
        argmax = -1;
        far = false;
    }
};

}  // namespace softxent
