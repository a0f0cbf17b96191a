// Sweeps over the n numbers of a row, or of a stretch of it: each finds or makes something in one pass. Lanes lie across
// the classes. No memory beyond the n numbers is touched.
#pragma once

#include <limits>

#include "../math/tanh.hpp"
#include "../vec/elements.hpp"
#include "finish.hpp"
#include "target.hpp"

namespace softxent {

inline constexpr double INF = std::numeric_limits<double>::infinity();

// Calls f(p, i, count) for Blocks, then for Vecs, from i on. p is of the type of the Pack. `count` is All, except in the
// last Vec, and in a first Vec of `head` lanes if head > 0: there it is how many lanes there are.
struct All {};
template <class S, class F> SOFTXENT_INLINE void sweep_vecs(std::ptrdiff_t i, std::ptrdiff_t stop, F f) {
    for (; i + Vec<S>::lanes <= stop; i += Vec<S>::lanes) f(Vec<S>(), i, All());
    if (i < stop) f(Vec<S>(), i, stop - i);
}
template <class S, class F> SOFTXENT_INLINE void sweep(std::ptrdiff_t i, std::ptrdiff_t stop, F f, std::ptrdiff_t head = 0) {
    if (head > 0) {
        f(Vec<S>(), i, head);
        i += head;
    }
    for (; i + Block<S>::lanes <= stop; i += Block<S>::lanes) f(Block<S>(), i, All());
    sweep_vecs<S>(i, stop, f);
}
template <class P, class S> SOFTXENT_INLINE P load_some(P, const S *p, All, double) { return load_pack<P>(p); }
template <class P, class S> SOFTXENT_INLINE P load_some(P, const S *p, std::ptrdiff_t n, double fill) { return load_pack_first<P>(p, n, fill); }
template <class T, class P> SOFTXENT_INLINE void store_some(T *p, All, const P &v) { store(p, v); }
template <class T, class P> SOFTXENT_INLINE void store_some(T *p, std::ptrdiff_t n, const P &v) { store_first(p, n, v); }
// yes where a byte, or a number, is not 0, else no.
template <class P> SOFTXENT_INLINE P select_some(const unsigned char *bytes, All, const P &yes, const P &no) {
    return select_bytes(bytes, yes, no);
}
template <class P> SOFTXENT_INLINE P select_some(const unsigned char *bytes, std::ptrdiff_t n, const P &yes, const P &no) {
    unsigned char some[P::lanes] = {};
    std::copy_n(bytes, n, some);
    return select_bytes(some, yes, no);
}
template <class P, class S, class Count> SOFTXENT_INLINE P select_some(const S *numbers, Count count, const P &yes, const P &no) {
    return select_equal(load_some(P(), numbers, count, 0), P(0), no, yes);
}

// The largest number so far, of Blocks and of Vecs. NaNs are ignored.
template <class S> struct Largest {
    Block<S> blocks{-INF};
    Vec<S> vecs{-INF};
    SOFTXENT_INLINE void add(const Block<S> &v) { blocks = maximum(v, blocks); }
    SOFTXENT_INLINE void add(const Vec<S> &v) { vecs = maximum(v, vecs); }
    SOFTXENT_INLINE double value() const { return largest(maximum(fold_largest(blocks), vecs)); }
};

// The largest number that is not NaN; -inf if all are NaN.
template <class S> SOFTXENT_INLINE double row_max(const S *x, std::ptrdiff_t n) {
    Largest<S> most;
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) { most.add(load_some(p, x + i, count, -INF)); }, line_start(x, n));
    return most.value();
}

// As row_max; `least` gets the smallest number that is not NaN.
template <class S> double row_range(const S *x, std::ptrdiff_t n, double *least) {
    Largest<S> most, minus;
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) {
        auto v = load_some(p, x + i, count, static_cast<double>(x[0]));
        most.add(v);
        minus.add(decltype(p)(0) - v);
    }, line_start(x, n));
    *least = -minus.value();
    return most.value();
}

// The largest absolute value of a finite number.
template <class S> double finite_size(const S *x, std::ptrdiff_t n) {
    Largest<S> sizes, finite_sizes;
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) {
        auto v = load_some(p, x + i, count, 0);
        sizes.add(maximum(v, decltype(p)(0) - v));
    });
    if (is_finite(sizes.value())) return sizes.value();
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) {
        decltype(p) zero(0), v = load_some(p, x + i, count, 0), size = maximum(v, zero - v);
        finite_sizes.add(select_equal(size, decltype(p)(INF), zero, size));
    });
    return finite_sizes.value();
}

// Whether the sum of 10^12 products of two such numbers is in range. Infinite ones are ignored.
template <class S> bool are_moderate(const S *x, std::ptrdiff_t n) {
    const double size = finite_size(x, n);
    return size * size <= largest_number(x) / 1e12;
}

// What a sweep finds in the logits that it makes.
struct Taken {
    double m;                                                  // the largest; NaNs are ignored
    bool all_finite;                                           // if not, a temperature below 1 may have taken one out of range
};

// Makes the logits of the softmax, a Pack at a time: see make_logits. If CAPS, `slope` gets their derivative times the
// temperature, whether the class is allowed or not.
template <class S, bool DIVIDES, bool CAPS> struct LogitMaker {
    const Divisor<S> temperature;
    const double cap, inverse_cap;
    const bool checks;
    Vec<S> sum{0};                                             // finite only if all quotients are

    explicit LogitMaker(const Transform &transform)
        : temperature(transform.temperature), cap(transform.cap), inverse_cap(CAPS ? 1 / cap : 0), checks(transform.temperature < 1) {}
    template <class P, class X, class M, class Count>
    SOFTXENT_INLINE void make(P *v, P *slope, const X *x, const M *allowed, std::ptrdiff_t i, Count count, double fill) {
        *v = load_some(P(), x + i, count, fill);
        if constexpr (DIVIDES) {
            *v = temperature.under(*v);
            if (checks) sum = sum + fold_sum(*v);
        }
        if constexpr (CAPS) *v = P(cap) * tanh(*v * P(inverse_cap), slope);
        if (allowed != nullptr) *v = select_some(allowed + i, count, *v, P(-INF));
    }
    SOFTXENT_INLINE bool all_finite() const { return all_equal(sum - sum, Vec<S>(0)); }
};

// The logits z of the softmax for the classes [start, stop), from logits x, which may be z. `allowed` is null, or has a
// byte or number that is 0 for each class that is not allowed. `slope` is null, or gets the derivative of z times the
// temperature; it may be `allowed`.
template <class S, class X, class M>
Taken make_logits(
    const Transform &transform, const X *x, const M *allowed, S *z, S *slope, std::ptrdiff_t start, std::ptrdiff_t stop
) {
    const double fill = static_cast<double>(x[start]);         // a logit of this row, so that the largest stays the largest
    const auto make = [&](auto maker) {
        Largest<S> most;
        sweep<S>(start, stop, [&](auto p, std::ptrdiff_t i, auto count) {
            using P = decltype(p);
            P v, d(1);
            maker.make(&v, &d, x, allowed, i, count, fill);
            if (allowed != nullptr) d = select_some(allowed + i, count, d, P(0));
            store_some(z + i, count, v);
            if (slope != nullptr) store_some(slope + i, count, d);
            most.add(v);
        });
        return Taken{most.value(), maker.all_finite()};
    };
    if (transform.cap > 0) {
        if (transform.temperature != 1) return make(LogitMaker<S, true, true>(transform));
        return make(LogitMaker<S, false, true>(transform));
    }
    if (transform.temperature != 1) return make(LogitMaker<S, true, false>(transform));
    return make(LogitMaker<S, false, false>(transform));
}
template <class S>
Taken take_logits(
    const Transform &transform, const Converted &x, const unsigned char *allowed, S *z, S *slope, std::ptrdiff_t start,
    std::ptrdiff_t stop
) {
    return with_elements<S>(x, 0, [&](const auto *from) { return make_logits(transform, from, allowed, z, slope, start, stop); });
}

// g becomes the gradient with respect to the logits as given: 0 where a class is not allowed, even if g is NaN.
template <class S> void multiply_by_slope(S *g, const S *slope, std::ptrdiff_t n) {
    for (std::ptrdiff_t i = 0; i < n; ++i) g[i] = slope[i] != 0 ? g[i] * slope[i] : 0;
}

// What exp_sum_and does besides, if that is nothing.
struct Nothing {
    template <class P, class Count> SOFTXENT_INLINE void operator()(const P &, std::ptrdiff_t, Count) const {}
};

// The sum of all exponentials but that of the class `left_out`. They are written to e, which may be x, unless it is null.
// Logits are prefetched `prefetch_distance` ahead, unless that is 0. The order of additions does not depend on `left_out`.
// also(exponentials, i, count) is called as by `sweep`, and before(p, i, count) before the exponentials are written.
template <class S, class F = Nothing, class G = Nothing>
SOFTXENT_INLINE Carried<double> exp_sum_and(
    const S *x, S *e, std::ptrdiff_t n, std::ptrdiff_t left_out, RowUnit<S> unit, std::ptrdiff_t prefetch_distance, F also = F(),
    G before = G()
) {
    constexpr std::ptrdiff_t width = Block<S>::lanes;
    const std::ptrdiff_t blocks_end = n - n % width;
    const std::ptrdiff_t apart = 0 <= left_out && left_out < blocks_end ? left_out - left_out % width : blocks_end;
    Sum<S> total;
    std::ptrdiff_t i = 0;
    const auto add_blocks = [&](std::ptrdiff_t end) {
        for (; i < end; i += width) {
            before(Block<S>(), i, All());
            if (prefetch_distance != 0) prefetch(reinterpret_cast<const char *>(x + i + prefetch_distance), sizeof(S) * width);
            Block<S> made;
            Vec<S> sum = exp_block(x + i, e == nullptr ? e : e + i, unit, &made);
            if constexpr (KEEPS_BLOCKS<S>) {                   // else it is a loop, that Block, and the loop again: see below
                if (i == apart) sum = fold_sum(without_lane(made, left_out - i));
            }
            total.add(sum);
            also(made, i, All());
        }
    };
    if (!KEEPS_BLOCKS<S> && apart < blocks_end) {
        add_blocks(apart);
        before(Block<S>(), i, All());
        Block<S> v = exp(load_block(x + i), unit);
        total.add(fold_sum(without_lane(v, left_out - i)));
        if (e != nullptr) store(e + i, v);
        also(v, i, All());
        i += width;
    }
    add_blocks(blocks_end);
    sweep_vecs<S>(i, n, [&](auto p, std::ptrdiff_t i, auto count) {
        before(p, i, count);
        auto v = exp(load_some(p, x + i, count, -INF), unit);
        total.add(without_lane(v, left_out - i));
        if (e != nullptr) store_some(e + i, count, v);
        also(v, i, count);
    });
    return total.value();
}
template <class S>
SOFTXENT_INLINE Carried<double> exp_sum(
    const S *x, S *e, std::ptrdiff_t n, std::ptrdiff_t left_out, RowUnit<S> unit, std::ptrdiff_t prefetch_distance
) {
    return exp_sum_and(x, e, n, left_out, unit, prefetch_distance);
}
// The same. `other`, which is written later, is prefetched meanwhile.
template <class S>
Carried<double> exp_sum_beside(
    const S *x, S *e, const S *other, std::ptrdiff_t n, std::ptrdiff_t left_out, RowUnit<S> unit, std::ptrdiff_t prefetch_distance
) {
    return exp_sum_and(x, e, n, left_out, unit, prefetch_distance, [=](auto exps, std::ptrdiff_t i, auto) {
        prefetch(reinterpret_cast<const char *>(other + i), sizeof(exps));
    });
}

// As exp_sum without writing, and the DiagnosticSums of the stretch. Classes ahead of `label`, which may lie in another
// stretch, are counted if COUNTS_AHEAD: their logit is larger than `logit`, or they have the same one and come first.
template <bool COUNTS_AHEAD, class S>
Carried<double> exp_and_diagnostic_sums_of(
    const S *x, std::ptrdiff_t n, std::ptrdiff_t left_out, RowUnit<S> unit, double m, std::ptrdiff_t label, S logit,
    DiagnosticSums *diagnostics, std::ptrdiff_t prefetch_distance
) {
    // Up to `same_from` a class with the same logit comes first: it is above the number below that, unless that is -inf.
    const std::ptrdiff_t first = std::clamp<std::ptrdiff_t>(label, 0, n), blocks = first < n ? first - first % Block<S>::lanes : n;
    const std::ptrdiff_t same_from = static_cast<double>(logit) == -INF ? 0 : blocks;
    const double below = std::nextafter(logit, static_cast<S>(-INF));
    Sum<S> total, R, gaps;
    Vec<S> ahead(0);
    std::ptrdiff_t argmax = -1;
    bool is_apart = false;                                     // R is not `total` any more
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t start, auto count) {
        using P = decltype(p);
        if (prefetch_distance != 0) prefetch(reinterpret_cast<const char *>(x + start + prefetch_distance), sizeof(p));
        P logits = load_some(p, x + start, count, -INF), e = exp(logits, unit);
        gaps.add(fold_sum(entropy_terms(e, logits, m)));
        if constexpr (COUNTS_AHEAD) {
            ahead = count_greater(ahead, logits, P(start < same_from ? below : static_cast<double>(logit)));
        }
        Vec<S> sum = fold_sum(e), rest = sum;
        if (argmax < 0) {
            argmax = first_equal(logits, m);
            if (argmax >= 0) {
                rest = fold_sum(without_lane(e, argmax));
                argmax += start;
                if (argmax != left_out) {
                    is_apart = true;
                    R = total;
                }
            }
        }
        if (start <= left_out && left_out < start + P::lanes) sum = fold_sum(without_lane(e, left_out - start));
        if (is_apart) R.add(rest);
        total.add(sum);
    });
    diagnostics->gaps = gaps.value();
    diagnostics->argmax = argmax < n ? argmax : -1;
    if constexpr (COUNTS_AHEAD) {
        double low;
        diagnostics->ahead = static_cast<std::ptrdiff_t>(Sum<S>(ahead).value().minus(0, &low));
        for (std::ptrdiff_t c = same_from; c < first; ++c) diagnostics->ahead += x[c] == logit;
    }
    diagnostics->R = is_apart ? R.value() : total.value();
    return total.value();
}
template <class S>
Carried<double> exp_and_diagnostic_sums(
    const S *x, std::ptrdiff_t n, std::ptrdiff_t left_out, RowUnit<S> unit, double m, std::ptrdiff_t label, S logit,
    DiagnosticSums *diagnostics, std::ptrdiff_t prefetch_distance
) {
    if (static_cast<double>(logit) == m) {
        diagnostics->ahead = 0;
        return exp_and_diagnostic_sums_of<false>(x, n, left_out, unit, m, label, logit, diagnostics, prefetch_distance);
    }
    return exp_and_diagnostic_sums_of<true>(x, n, left_out, unit, m, label, logit, diagnostics, prefetch_distance);
}

// Adds up m - x.
template <class S> struct GapSum {
    const S *x;
    double m;
    Sum<S> total;
    GapSum(const S *x, double m) : x(x), m(m) {}
    template <class P, class Count> SOFTXENT_INLINE void operator()(P p, std::ptrdiff_t i, Count count) {
        total.add(fold_sum(P(m) - load_some(p, x + i, count, m)));
    }
};
template <class S> SOFTXENT_INLINE Carried<double> gap_sum(const S *x, std::ptrdiff_t n, double m) {
    GapSum<S> gaps(x, m);
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) { gaps(p, i, count); });
    return gaps.total.value();
}
// exp_sum and gap_sum at once.
template <class S>
Carried<double> exp_and_gap_sum(
    const S *x, S *e, std::ptrdiff_t n, std::ptrdiff_t left_out, RowUnit<S> unit, double m, Carried<double> *gap_total,
    std::ptrdiff_t prefetch_distance
) {
    GapSum<S> gaps(x, m);
    const Carried<double> R = exp_sum_and(
        x, e, n, left_out, unit, prefetch_distance, Nothing(), [&](auto p, std::ptrdiff_t i, auto count) { gaps(p, i, count); });
    *gap_total = gaps.total.value();
    return R;
}

// The sum of w (m - x), for weights w of the classes: 0 * inf is 0 if LOOKS_FOR_0, else NaN. `top` becomes the first class
// with x = m, -1 if there is none.
template <bool LOOKS_FOR_0, class S>
SOFTXENT_INLINE Carried<double> weighted_gap_sum(const S *x, const S *w, std::ptrdiff_t n, double m, std::ptrdiff_t *top) {
    Sum<S> total;
    std::ptrdiff_t found = -1;
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) {
        using P = decltype(p);
        P weights = load_some(p, w + i, count, 0), logits = load_some(p, x + i, count, m);
        total.add(fold_sum(weights * gap<LOOKS_FOR_0>(weights, logits, P(m))));
        if (found < 0) {
            found = first_equal(logits, m);
            if (found >= 0) found += i;
        }
    });
    *top = found < n ? found : -1;
    return total.value();
}
// The gaps of a row with weights of classes; the argmax is the label if that is one, else the first class with x = m.
template <class S> void find_weighted_gaps(RowSums *sums, const S *x, const S *w, std::ptrdiff_t n, double m) {
    std::ptrdiff_t top;
    sums->gaps = weighted_gap_sum<false>(x, w, n, m, &top);
    if (sums->gaps.sum != sums->gaps.sum) sums->gaps = weighted_gap_sum<true>(x, w, n, m, &top);
    if (sums->argmax < 0) sums->argmax = top;
}

// As blend_row with a mask, for the target of a label: t need not be filled in before.
template <class S>
void build_label_row(
    S *t, std::ptrdiff_t n, std::ptrdiff_t label, double smoothing, const unsigned char *allowed, const S *class_weight
) {
    const double share = share_of_each(smoothing, static_cast<double>(count_allowed(allowed, n)), 1.0);
    sweep<S>(0, n, [&](auto p, std::ptrdiff_t i, auto count) {
        decltype(p) amount = select_some(allowed + i, count, decltype(p)(share), decltype(p)(0));
        if (class_weight != nullptr) amount = amount * load_some(p, class_weight + i, count, 0);
        store_some(t + i, count, amount);
    });
    t[label] = static_cast<S>(smoothed(smoothing, 1.0, allowed[label] != 0 ? share : 0));
    if (class_weight != nullptr) t[label] *= class_weight[label];
}

// Add up a stretch of a target that is the distribution t; t is prefetched `prefetch_distance` ahead. 0 * inf is 0 if
// LOOKS_FOR_0, else NaN.
template <bool LOOKS_FOR_0, class S>
void add_distribution(RowSums *sums, const S *x, const S *t, std::ptrdiff_t n, double m, std::ptrdiff_t prefetch_distance) {
    using V = Vec<S>;
    Sum<S> cross, rest;
    std::ptrdiff_t argmax = -1;
    auto wide_m = wide(V(m));
    const auto add = [&](std::ptrdiff_t i, auto wide_t, auto wide_x, const V &weights, const V &logits) {
        cross.template add_gaps<LOOKS_FOR_0>(wide_t, wide_x, wide_m);
        if (argmax < 0) {
            const unsigned wanted = equal_bits(logits, V(m)) & ~equal_bits(weights, V(0));
            if (wanted != 0) {
                argmax = i + lowest_bit(wanted);
                wide_t = wide(without_lane(weights, argmax - i));
            }
        }
        rest.add(wide_t);
    };
    // Vec by Vec: the order of additions is that of the narrow kernel.
    std::ptrdiff_t i = 0;
    for (; i + V::lanes <= n; i += V::lanes) {
        if (prefetch_distance != 0) prefetch(reinterpret_cast<const char *>(t + i + prefetch_distance), sizeof(V));
        add(i, load_wide(t + i), load_wide(x + i), load(t + i), load(x + i));
    }
    if (i < n) {
        V weights = load_first(t + i, n - i, 0), logits = load_first(x + i, n - i, 0);
        add(i, wide(weights), wide(logits), weights, logits);
    }
    sums->rest = rest.value();
    sums->cross = cross.value();
    sums->argmax = argmax;
    sums->t_at_argmax = argmax < 0 ? 0 : t[argmax];
}
template <class S>
void find_distribution(
    RowSums *sums, const S *x, const S *t, std::ptrdiff_t n, double m, bool is_masked, std::ptrdiff_t prefetch_distance
) {
    if (!is_masked) add_distribution<false>(sums, x, t, n, m, prefetch_distance);
    if (is_masked || sums->cross.sum != sums->cross.sum) add_distribution<true>(sums, x, t, n, m, prefetch_distance);
}

template <class S> void multiply(S *v, double factor, std::ptrdiff_t n) {
    for (std::ptrdiff_t i = 0; i < n; ++i) v[i] *= static_cast<S>(factor);
}

// `allowed`, or null if the results are right without: `masked` is both the number and the result of a class that is not allowed.
template <class S, class R>
const unsigned char *needed_mask(const unsigned char *allowed, const R &result, double masked) {
    if (allowed == nullptr) return nullptr;
    const double made = lane0(result.of(Vec<S>(masked)));
    return made == masked && std::signbit(made) == std::signbit(masked) ? nullptr : allowed;
}

// g becomes the gradient of the exponentials e of the classes [start, stop); t and `allowed` may be null, e may be g.
// Before, the exponentials are multiplied by `unscale`. If g has another type than e, gradients are rounded as they are stored.
template <class S, class G>
void take_gradient(
    const Gradient<double> &gradient, double unscale, S *e, const S *t, const unsigned char *allowed, G *g, std::ptrdiff_t start,
    std::ptrdiff_t stop, bool streaming
) {
    if (unscale != 1) multiply(e + start, unscale, stop - start);
    const Gradient<double> numbers = gradient;
    if (t == nullptr) allowed = needed_mask<S>(allowed, numbers, 0);
    std::ptrdiff_t head = 0;
    // Whole blocks start at a cache line, wherever the row does: a store across two lines costs twice.
    if constexpr (std::is_same_v<S, G>) head = line_start(g + start, stop - start);
    sweep<S>(start, stop, [&](auto p, std::ptrdiff_t i, auto count) {
        auto v = numbers.of(load_some(p, e + i, count, 0));
        if (t != nullptr) v = numbers.minus_target(v, load_some(p, t + i, count, 0));
        if (allowed != nullptr) v = select_some(allowed + i, count, v, decltype(p)(0));
        if constexpr (std::is_same_v<S, G> && decltype(p)::lanes == Block<S>::lanes) {
            if (streaming) return stream(g + i, v);
        }
        store_some(g + i, count, v);
    }, head);
}
template <class S>
void take_converted_gradient(
    const Gradient<double> &gradient, double unscale, S *e, const S *t, const unsigned char *allowed, const Converted &g,
    std::ptrdiff_t start, std::ptrdiff_t stop
) {
    using Other = std::conditional_t<std::is_same_v<S, float>, double, float>;
    const auto take = [&](auto *to) { take_gradient(gradient, unscale, e, t, allowed, to, start, stop, false); };
    if (g.layout->element == (std::is_same_v<S, float> ? FLOAT64 : FLOAT32)) {
        take(reinterpret_cast<Other *>(g.data));
    } else {
        with_elements<S>(g, 0, take);
    }
}

}  // namespace softxent
