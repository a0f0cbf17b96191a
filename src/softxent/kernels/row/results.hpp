// What the last sweep makes of a row, besides its gradient (finish.hpp): a struct for each result, whose function `of`
// turns a number of the row into its result. N is a double, for all lanes, or a Pack with a number for each.
//
// With S = R + e_a the sum of all exponentials, e_a that of the largest logit m:
//     softmax       e_j / S
//     log_softmax   (x_j - m) - log(S / e_a)      two terms that are not positive, so nothing cancels
//     product       A e_j / S ((v_j - v_a) + sum over k of e_k (v_a - v_k) / S)
//     Hessian       A (e_j / S) (1 - e_j / S) + B (e_j / S)^2, its diagonal; at a, where 1 - p cancels, 1 - p is R / S
// The product of the softmax's Jacobian with v has A = 1. In that of the Hessian, A is the mass of the target. A z-loss adds
// 2 z lse to A, and B = 2 z.
#pragma once

#include <cmath>

#include "sweeps.hpp"

namespace softxent {

// x as a sum of two numbers, of which the first is
// exact in a float (Veltkamp).
template <class D> SOFTXENT_INLINE void split(const D &x, D *high, D *low) {
    D product = x * D(0x1p29 + 1);
    *high = product - (product - x);
    *low = x - *high;
}

// g becomes result(p, i, count) for the classes [start, stop), and `not_allowed` where a class is not allowed; `allowed`
// may be null.
template <class S, class F>
SOFTXENT_INLINE void store_results(
    S *g, const unsigned char *allowed, double not_allowed, std::ptrdiff_t start, std::ptrdiff_t stop, bool streaming, F result
) {
    // Whole blocks start at a cache line, wherever the row does: a store across two lines costs twice.
    sweep<S>(start, stop, [&](auto p, std::ptrdiff_t i, auto count) {
        auto made = result(p, i, count);
        if (allowed != nullptr) made = select_some(allowed + i, count, made, decltype(p)(not_allowed));
        if constexpr (decltype(p)::lanes == Block<S>::lanes) {
            if (streaming) return stream(g + i, made);
        }
        store_some(g + i, count, made);
    }, line_start(g + start, stop - start));
}

// Probabilities from exponentials. The factor 1 / S has more digits than the type, or its rounding would cost 1 ulp. S is
// the sum of R and the exact e_a, since the rounding of e_a would enter all other probabilities. If a has more than half,
// its probability is set by itself, for the same reason; if not, `at_top` is NaN.
template <class N> struct Probabilities {
    N high, low, at_top;

    template <class P> SOFTXENT_INLINE P of(const P &e) const {
        P h = for_lanes<P>(high), l = for_lanes<P>(low);
        return fma(e, h, e * l);
    }
};

// The exact exponential of the largest logit. It takes long, and can be found before all other exponentials.
template <class S, int N>
SOFTXENT_INLINE TwoDoubles<N> exact_e_m(const Pack<double, N> &m_shifted, const Pack<double, N> &n0) {
    using D = Pack<double, N>;
    using K = ExpConstants<double>;
    constexpr double UNIT = ExpConstants<S>::UNIT;
    auto exact = exp_parts(m_shifted - n0 * D(K::LN2_HI), D(0) - n0 * D(K::LN2_LO));
    return {exact.high * D(UNIT), exact.low * D(UNIT)};
}

template <class S> void exact_e_m(const S *, double m_shifted, double n0, double *high, double *low) {
    using P = Pack<double, 1>;
    auto e_m = exact_e_m<S>(P(m_shifted), P(n0));
    *high = lane0(e_m.high);
    *low = lane0(e_m.low);
}

template <class S, class D>
SOFTXENT_INLINE Probabilities<D> find_probabilities(const S *, const D &R, const D &R_low, const D &e_m, const D &e_m_low) {
    Probabilities<D> numbers;
    Denominator<S, D> whole(R, R_low + e_m_low, e_m);
    numbers.at_top = select_equal(maximum(R, e_m), R, D(std::numeric_limits<double>::quiet_NaN()), whole.under(e_m));
    if constexpr (sizeof(S) < sizeof(double)) {
        split(whole.inverse, &numbers.high, &numbers.low);
    } else {
        numbers.high = whole.under(D(1));
        numbers.low = (exact_fma(D(0) - numbers.high, whole.sum, D(1)) - numbers.high * whole.low) * whole.inverse;
    }
    return numbers;
}

// How many classes are ahead of `label`: their logit is larger, or they have the same one and come first. NaN is not.
template <class S> std::ptrdiff_t count_ahead(const S *x, std::ptrdiff_t n, std::ptrdiff_t label) {
    std::ptrdiff_t ahead = 0;
    for (std::ptrdiff_t c = 0; c < n; ++c) ahead += x[c] > x[label] || (x[c] == x[label] && c < label);
    return ahead;
}

// Logarithms of probabilities from logits; high + low is log(S / e_a).
template <class N> struct LogProbabilities {
    N m, high, low;

    template <class P> SOFTXENT_INLINE P of(const P &x) const {
        P h = for_lanes<P>(high), l = for_lanes<P>(low), gap = x - for_lanes<P>(m);
        return (gap - l) - h;
    }
};

template <class S, int N>
SOFTXENT_INLINE LogProbabilities<Pack<double, N>> find_log_probabilities(
    const S *, const Pack<double, N> &m, const Pack<double, N> &R, const Pack<double, N> &R_low, const Pack<double, N> &m_shifted,
    const Pack<double, N> &n0
) {
    LogProbabilities<Pack<double, N>> numbers;
    auto log = log1p_rest<S>(R, R_low, m_shifted, n0);
    numbers.m = m;
    if constexpr (sizeof(S) < sizeof(double)) {
        split(log.high + log.low, &numbers.high, &numbers.low);
    } else {
        numbers.high = log.high + log.low;
        numbers.low = rounded_off(log.high, log.low, numbers.high);
    }
    return numbers;
}
template <class S>
LogProbabilities<double> find_log_probabilities(const S *t, double m, double R, double R_low, double m_shifted, double n0) {
    using P = Pack<double, 1>;
    auto numbers = find_log_probabilities(t, P(m), P(R), P(R_low), P(m_shifted), P(n0));
    return {m, lane0(numbers.high), lane0(numbers.low)};
}

// Products with a vector v, which is taken relative to its value at a: a constant gives 0, and the small product at the
// top of a confident row keeps its digits. `pull` adds what a z-loss does: pull * e.
template <class N> struct Product {
    N at_top, shift, factor, pull;
    bool pulled;

    template <class P> SOFTXENT_INLINE P of(const P &e, const P &v) const {
        P product = (e * for_lanes<P>(factor)) * ((v - for_lanes<P>(at_top)) + for_lanes<P>(shift));
        if (pulled) product = fma(e, for_lanes<P>(pull), product);
        return product;
    }
};

// `products` is the sum of e_j (v_a - v_j), `mass` is A, and 2 z lse <p, v> is in `pull` times <p, v>.
template <class S, class D>
SOFTXENT_INLINE Product<D> find_product(
    const S *, const Denominator<S, D> &whole, const D &products, const D &at_top, const D &mass, const D &pull
) {
    Product<D> numbers;
    numbers.at_top = at_top;
    numbers.shift = whole.under(products);
    numbers.factor = whole.under(mass);
    numbers.pull = whole.under(pull * (at_top - numbers.shift));
    return numbers;
}

// The sum of e_j (at_top - v_j). It is not finite if a product is too large, or if v is not finite.
template <class S> Carried<double> product_sum(const S *e, const S *v, std::ptrdiff_t n, double at_top) {
    Sum<S> products;
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) {
        products.add(fold_sum(load_some(p, e + i, count, 0) * (decltype(p)(at_top) - load_some(p, v + i, count, 0))));
    });
    return products.value();
}

// The same and exp_sum, in one sweep. Logits and vectors are prefetched so far ahead, unless that is 0.
template <class S>
Carried<double> exp_and_product_sums(
    const S *x, S *e, const S *v, std::ptrdiff_t n, std::ptrdiff_t left_out, RowUnit<S> unit, double at_top,
    std::ptrdiff_t prefetch_distance, Carried<double> *products
) {
    Sum<S> total;
    Carried<double> sum = exp_sum_and(x, e, n, left_out, unit, prefetch_distance, [&](auto exps, std::ptrdiff_t i, auto count) {
        using P = decltype(exps);
        if (prefetch_distance != 0) prefetch(reinterpret_cast<const char *>(v + i + prefetch_distance), sizeof(P));
        total.add(fold_sum(exps * (P(at_top) - load_some(P(), v + i, count, 0))));
    });
    *products = total.value();
    return sum;
}

template <class S>
void take_product(
    const Product<double> &product, const S *e, const S *v, const unsigned char *allowed, S *g, std::ptrdiff_t start, std::ptrdiff_t stop,
    bool streaming
) {
    const Product<double> numbers = product;
    store_results(g, allowed, 0, start, stop, streaming, [&](auto p, std::ptrdiff_t i, auto count) {
        return numbers.of(load_some(p, e + i, count, 0), load_some(p, v + i, count, 0));
    });
}

// The diagonal of the Hessian from exponentials; minus_inverse is -1 / S, and `pull` is -B / S. If a has more than half, the
// number at a is set by itself; if not, `at_top` is NaN.
template <class N> struct Hessian {
    N factor, minus_inverse, pull, at_top;
    bool pulled;

    template <class P> SOFTXENT_INLINE P of(const P &e) const {
        P minus = for_lanes<P>(minus_inverse), h = (e * for_lanes<P>(factor)) * fma(e, minus, P(1));
        if (pulled) h = fma(e * for_lanes<P>(pull), e * minus, h);
        return h;
    }
};

// `mass` is A and `pull` is B.
template <class S, class D>
SOFTXENT_INLINE Hessian<D> find_hessian(
    const S *, const Denominator<S, D> &whole, const D &R, const D &e_m, const D &mass, const D &pull
) {
    Hessian<D> numbers;
    D zero(0), p = whole.under(e_m);
    numbers.factor = whole.under(mass);
    numbers.minus_inverse = zero - whole.under(D(1));
    numbers.pull = zero - whole.under(pull);
    numbers.at_top = select_equal(
        maximum(R, e_m), R, D(std::numeric_limits<double>::quiet_NaN()), mass * whole.under(R) * p + pull * p * p);
    return numbers;
}

// g becomes the gradient of the exponentials e, as in take_gradient, and h the diagonal of the Hessian.
template <class S>
void take_gradient_and_hessian(
    const Gradient<double> &gradient, const Hessian<double> &hessian, double unscale, S *e, const S *t, const unsigned char *allowed,
    S *g, S *h, std::ptrdiff_t start, std::ptrdiff_t stop, bool streaming
) {
    if (unscale != 1) multiply(e + start, unscale, stop - start);
    const Gradient<double> numbers = gradient;
    const Hessian<double> second = hessian;
    const bool streams_h = streaming && to_line(g) == to_line(h);
    store_results(g, allowed, 0, start, stop, streaming, [&](auto p, std::ptrdiff_t i, auto count) {
        decltype(p) v = load_some(p, e + i, count, 0), grad = numbers.of(v), hess = second.of(v);
        if (t != nullptr) grad = numbers.minus_target(grad, load_some(p, t + i, count, 0));
        if (allowed != nullptr) hess = select_some(allowed + i, count, hess, decltype(p)(0));
        if (decltype(p)::lanes == Block<S>::lanes && streams_h) stream(h + i, hess);
        else store_some(h + i, count, hess);
        return grad;
    });
}

// The sum of the exponentials e, without the class `top`, in the order of exp_sum.
template <class S> Carried<double> rest_of(const S *e, std::ptrdiff_t n, std::ptrdiff_t top) {
    Sum<S> total;
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) {
        total.add(fold_sum(without_lane(load_some(p, e + i, count, 0), top - i)));
    });
    return total.value();
}

// Whether R, which is the sum of all exponentials minus e_m, may have lost digits by that. The sum has those of a double,
// but the exponentials of a block are added in S first.
template <class S> SOFTXENT_INLINE bool has_lost_digits(const S *, double R, double e_m, std::ptrdiff_t n) {
    return R < (n >= Block<S>::lanes ? 1 : sizeof(S) < sizeof(double) ? 0x1p-22 : 0x1p-40) * e_m;
}

// From this size of m on, log(S) loses nothing if e_a is added with the others and subtracted: m has fewer digits.
inline constexpr double PLAIN_LSE_FROM = 4;

// The first class whose logit is m; 0 if there is none.
template <class S> SOFTXENT_INLINE std::ptrdiff_t find_top(const S *x, std::ptrdiff_t n, double m) {
    std::ptrdiff_t i = 0;
    for (; i + Block<S>::lanes <= n; i += Block<S>::lanes) {
        Block<S> v = load_block(x + i);
        // One comparison for the whole block: m is the largest of all.
        if (equal_bits(fold_largest(v), Vec<S>(m)) != 0) return i + first_equal(v, m);
    }
    for (; i < n; ++i)
        if (x[i] == m) return i;
    return 0;
}

// The numbers that make the derivatives of a row, if they, or the derivatives, may be out of range: see far.pxi.
struct FarNumbers {
    Scale scale, mass, pull, pull_of_mass;                     // of the row; A; B; what a z-loss adds to A
    double whole, not_top;                                     // S; the probability of all classes but a
    double quarter_mean;                                       // of a vector, less its value at a
};
// Whether the derivatives with A and B, both with the scale of the row, are to be made like that. NaN is not.
template <class S> bool is_far(const S *tag, double mass, double pull) {
    return std::max(std::fabs(mass), std::fabs(pull)) > largest_scale(tag);
}
// A vector of so large differences may have some that are not finite.
template <class S> constexpr double largest_shift(const S *tag) { return largest_number(tag) * 0x1p-60; }

// What the last sweep over a row needs, by the result that it makes.
struct RowResult {
    double e_m, e_m_low;                                       // for probabilities: exact_e_m
    Probabilities<double> probabilities;
    LogProbabilities<double> logs;
    Product<double> product;
    Hessian<double> hessian;
    double unscale;                                            // exponentials are multiplied by it first, if it is not 1
    std::ptrdiff_t top;                                        // of a Hessian: the class with the largest logit
    double after;                                              // a Hessian is multiplied by it at last, if it is not 1
    int steps;                                                 // how often a product or Hessian is multiplied by SCALE_STEP
    bool is_far;                                               // then they are made of these numbers
    FarNumbers far;
};

// g becomes the results of the numbers v of the classes [start, stop). `masked` is both the number and the result of a class
// that is not allowed.
template <class S, class R>
void take_result(
    const R &result, const S *v, const unsigned char *allowed, double masked, S *g, std::ptrdiff_t start, std::ptrdiff_t stop,
    bool streaming
) {
    const R numbers = result;
    allowed = needed_mask<S>(allowed, numbers, masked);
    store_results(g, allowed, masked, start, stop, streaming, [&](auto p, std::ptrdiff_t i, auto count) {
        return numbers.of(load_some(p, v + i, count, 0));
    });
}
// The same for the n numbers of a row of a few blocks, where stores across two lines cost less than a head does.
template <class S, class R>
SOFTXENT_INLINE void take_result_in(const R &result, const S *v, const unsigned char *allowed, double masked, S *g, std::ptrdiff_t n) {
    const R numbers = result;
    // Copies are passed on, so that `numbers` can stay in registers.
    if (allowed != nullptr && needed_mask<S>(allowed, R(result), masked) != nullptr)
        return take_result(R(result), v, allowed, masked, g, 0, n, false);
    const std::ptrdiff_t head = n < 8 * Block<S>::lanes ? 0 : line_start(g, n);
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) { store_some(g + i, count, numbers.of(load_some(p, v + i, count, 0))); }, head);
}

}  // namespace softxent
