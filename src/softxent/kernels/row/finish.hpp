// How a row is finished: from its sums to the numbers that make its gradient.
//
// With T the sum of the target t, m the largest logit, a the first class with x_a = m and t_a != 0, e_j = exp(x_j - m),
// R the sum of e_j over j != a, and S = R + e_a:
//     loss       T log(S / e_m) + sum over j of t_j (m - x_j)
//     gradient   T e_j / S - t_j,   and at a, where p_a > 1/2:   (T - t_a) - T R / S
// If there is no such class, R is the sum of all e_j minus 1, S = R + 1, and all classes have the first gradient.
//
// Label smoothing keeps (1 - s) t_j of the target and gives the share s T / n to each of the n classes. Where classes have
// weights w_j, a label's (1 - s) t_j is its weight's part, and class j gets w_j s / n: then T becomes (1 - s) T + s / n times
// the sum of all weights. z_loss adds z lse^2 to the loss, so 2 z lse p_j to the gradient: there T grows by 2 z lse, and t
// does not.
//
// D is a double for the one row of the wide kernel, and a Vec<double> for several rows of the other two.
#pragma once

#include "../job.hpp"
#include "numbers.hpp"

namespace softxent {

// share * x; 0 if the share is 0, whatever x is.
template <class D> SOFTXENT_INLINE D share_of(const D &share, const D &x) { return select_equal(share, D(0), D(0), share * x); }

// Smooth the sums of a row, whose gaps m - x_j add up to `gaps`, each times its weight if classes have weights; that of the
// argmax is w_a then, 0 if there is none. Returns the share of a class, without its weight.
template <class D>
SOFTXENT_INLINE D smooth_sums(const Formula &formula, double n, const D &w_a, const D &gaps, D *mass, D *cross, D *rest) {
    D kept(1 - formula.smoothing), share(formula.smoothing / n), others(n - 1), low;
    if (formula.weighs) {
        others = Carried<D>(D(formula.weights), D(formula.weights_low)).minus(w_a, &low);
        *mass = share_of(kept, *mass) + share * D(formula.weights);
    } else {
        share = share_of(share, *mass);
    }
    *cross = share_of(kept, *cross) + share_of(share, gaps);
    *rest = share_of(kept, *rest) + share * others;
    return share;
}

// The factors of a gradient: factor * e + offset + minus * t, but grad_at_argmax where the argmax has more than half.
template <class D> struct Factors { D factor, offset, minus, grad_at_argmax; };

// `mass` is T and `rest` is T - t_a, both with what a z-loss adds. `share` is what smoothing gives to each class.
template <class S, class D>
SOFTXENT_INLINE Factors<D> find_factors(
    const S *, const Formula &formula, const Denominator<S, D> &whole, const D &R, const D &mass, const D &rest, const D &share,
    const D &scale
) {
    Factors<D> factors;
    factors.factor = whole.under(scale * mass);
    factors.minus = D(0) - scale;
    factors.grad_at_argmax = scale * (rest - mass * whole.under(R));
    if (formula.smoothing != 0) {
        factors.offset = factors.minus * share;
        factors.minus = factors.minus * D(1 - formula.smoothing);
    }
    return factors;
}

// The gradient of exponentials e with targets t. N is a double, for all lanes, or a Pack with a number for each.
template <class N> struct Gradient {
    N factor, offset, minus;
    bool smoothed;                                             // if not, no offset is added: 0 would turn -0.0 into 0.0

    template <class P> SOFTXENT_INLINE P of(const P &e) const {
        P f = for_lanes<P>(factor);
        P g = e * f;
        if (smoothed) g = fma(e, f, for_lanes<P>(offset));
        return g;
    }
    template <class P> SOFTXENT_INLINE P minus_target(const P &grad, const P &t) const {
        return fma(t, for_lanes<P>(minus), grad);
    }
};

}  // namespace softxent
