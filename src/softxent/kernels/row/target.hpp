// The target of a row, the arrays of a row, and the sums over a stretch of it.
#pragma once

#include <cstdint>

#include "../math/sums.hpp"

namespace softxent {

// How many sums of a distribution are taken side by side: an addition to one must wait for the last one.
inline constexpr int MASSES = 8;

// The target of a row: a distribution, or `count` entries, each with a class and its amount. `amount` multiplies an
// entry by its class weight. A distribution is multiplied when it is built: see build_target.
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

// What `evaluate` tells of a row besides its loss, which does not depend on the target: sums over a stretch.
struct Spread {
    Carried<double> R;                                         // the exponentials but that at `argmax`
    Carried<double> gaps;                                      // e_j (m - x_j)
    std::ptrdiff_t argmax;                                     // the first class with x_j = m, -1 for none
};

// A row of the wide kernel: n logits, and where its numbers go.
template <class S> struct RowArrays {
    const S *x;                                                // the logits that the softmax is taken of
    S *e;                                                      // exponentials, in grad or scratch; null for the loss
    S *grad;                                                   // null for the loss alone
    std::ptrdiff_t n;
    const unsigned char *allowed;                              // 0 where a class is not allowed; null if all are
    Spread *spread;                                            // null if nobody asks for it
    Target<S> target;
};

// The sums over a stretch of a row, or over all stretches so far.
struct RowSums {
    Carried<double> R;                                         // the exponentials but that at `argmax`
    Carried<double> rest;                                      // t_j but that at `argmax`
    Carried<double> cross;                                     // t_j (m - x_j)
    Carried<double> gaps;                                      // m - x_j, if the target is to be smoothed
    bool far;                                                  // cross and gaps are multiplied by FAR_STEP^2
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
