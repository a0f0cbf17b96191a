// The target of a row, the arrays of a row, and the sums over a stretch of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../math/exp.hpp"
#include "../vec/elements.hpp"

namespace softxent {

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

// Sums over a stretch for lse, entropy and argmax. The target does not enter. Or the sum for a PRODUCT with a vector v.
struct DiagnosticSums {
    Carried<double> R;                                         // the exponentials but that at `argmax`
    Carried<double> gaps;                                      // e_j (m - x_j), or e_j (v_a - v_j)
    std::ptrdiff_t argmax;                                     // the first class with x_j = m, -1 for none
    std::ptrdiff_t ahead;                                      // how many classes are ahead of the label, unless it has m
};

// What the classes with the exponentials e and the logits x add to `gaps`. From m - FAR_GAP on, an exponential is 0.
inline constexpr double FAR_GAP = 1000;
template <class P, class M> SOFTXENT_INLINE P entropy_terms(const P &e, const P &x, const M &m) {
    P most = for_lanes<P>(m);
    return e * (most - maximum(most - P(FAR_GAP), x));
}

// Targets that are built. D is a double for one row, or a Vec<double> for several rows of the narrow kernel.
//
// The sum of amount(0), ..., amount(n - 1), in sums side by side, since an addition must wait for the previous one.
inline constexpr int MASSES = 8;
template <class D, class F> SOFTXENT_INLINE D mass_of(F amount, std::ptrdiff_t n) {
    Carried<D> sums[MASSES];
    D low;
    for (auto &sum : sums) sum = {D(0), D(0)};
    for (std::ptrdiff_t c = 0; c < n; ++c) sums[c % MASSES].add(amount(c));
    for (int i = 1; i < MASSES; ++i) sums[0] = sums[0] + sums[i];
    return sums[0].minus(D(0), &low);
}
// What each allowed class gets of a smoothed target, and the amount of a class, which gets `share`.
template <class D> SOFTXENT_INLINE D share_of_each(double smoothing, const D &n_allowed, const D &mass) {
    return D(smoothing) / n_allowed * mass;
}
template <class D> SOFTXENT_INLINE D smoothed(double smoothing, const D &t, const D &share) { return D(1 - smoothing) * t + share; }

inline std::ptrdiff_t count_allowed(const unsigned char *allowed, std::ptrdiff_t n) {
    constexpr std::ptrdiff_t PIECE = 4096;
    std::ptrdiff_t count = 0;
    for (std::ptrdiff_t start = 0; start < n; start += PIECE) {
        std::uint16_t of_piece = 0;                            // short numbers: more of them to a register
        for (std::ptrdiff_t c = start; c < std::min(n, start + PIECE); ++c)
            of_piece = static_cast<std::uint16_t>(of_piece + std::min<unsigned char>(allowed[c], 1));
        count += of_piece;
    }
    return count;
}

// A distribution t, smoothed over the allowed classes (null: over all), then multiplied by class weights (null: by none).
template <class S>
void blend_row(S *t, std::ptrdiff_t n, double smoothing, double mass, const unsigned char *allowed, const S *class_weight) {
    if (smoothing != 0) {
        const std::ptrdiff_t n_allowed = allowed == nullptr ? n : count_allowed(allowed, n);
        const double share = share_of_each(smoothing, static_cast<double>(n_allowed), mass);
        for (std::ptrdiff_t c = 0; c < n; ++c)
            t[c] = static_cast<S>(smoothed(smoothing, static_cast<double>(t[c]), allowed == nullptr ? share : share * (allowed[c] != 0)));
    }
    for (std::ptrdiff_t c = 0; class_weight != nullptr && c < n; ++c) t[c] *= class_weight[c];
}
// The sum of n weights, with what its additions round off.
template <class S> Carried<double> carried_sum(const S *v, std::ptrdiff_t n) {
    constexpr std::ptrdiff_t lanes = Vec<double>::lanes;
    Sum<double> total;
    std::ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) total.add(load_as_double(v + i));
    Carried<double> sum = total.value();
    for (; i < n; ++i) sum.add(static_cast<double>(v[i]));
    return sum;
}
template <class S> double row_mass(const S *t, std::ptrdiff_t n) {
    return mass_of<double>([=](std::ptrdiff_t c) { return static_cast<double>(t[c]); }, n);
}

// A row of the wide kernel: n logits, and where its numbers go.
template <class S> struct RowArrays {
    const S *x;                                                // the logits that the softmax is taken of
    S *copy;                                                   // x, if they are not those of the caller; else null
    S *e;                                                      // exponentials, in grad or scratch; null for the loss
    S *grad;                                                   // null for the loss alone
    Converted converted_grad;                                  // where it is stored at once, if its data are not null
    const S *next_stored;                                      // what is written after e, prefetched meanwhile; or null
    std::ptrdiff_t n;
    const unsigned char *allowed;                              // 0 where a class is not allowed; null if all are
    DiagnosticSums *diagnostics;                               // null if nobody asks for them
    Result result;                                             // what the last sweep makes
    const S *vector;                                           // of a PRODUCT; else null
    bool has_probs;                                            // x are probabilities, and take the place of e
    S *hess;                                                   // of a HESSIAN; else null
    const Scale *hess_scale;
    std::ptrdiff_t top;                                        // of a PRODUCT or without targets: the first class with the largest logit
    const S *spread;                                           // the weights by which smoothing spreads a label; else null
    Target<S> target;
};

// The sums over a stretch of a row, or over all stretches so far.
struct RowSums {
    Carried<double> R;                                         // the exponentials but that at `argmax`
    Carried<double> rest;                                      // t_j but that at `argmax`
    Carried<double> cross;                                     // t_j (m - x_j)
    Carried<double> gaps;                                      // m - x_j, if the target is smoothed; w_j (m - x_j): see Formula
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
