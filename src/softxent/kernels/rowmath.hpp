// The arithmetic of a row's numbers: exponentials counted in a unit of the row's own, sums that lose nothing, logarithms,
// and the loss and the factors that come of them.
//
// What exists once a row is written over D, a number for one row or a Pack for as many rows as it has lanes. Either way the
// operations and their order are the same, and so are the bits.
#pragma once

#include <cstdint>
#include <limits>

#include "vec.hpp"

namespace softxent {

SOFTXENT_INLINE float maximum(float a, float b) { return a > b ? a : b; }
SOFTXENT_INLINE double maximum(double a, double b) { return a > b ? a : b; }
SOFTXENT_INLINE float select_equal(float a, float b, float yes, float no) { return a == b ? yes : no; }
SOFTXENT_INLINE double select_equal(double a, double b, double yes, double no) { return a == b ? yes : no; }
SOFTXENT_INLINE double exact_fma(double a, double b, double c) {
    using P = Pack<double, 1>;
    return first(exact_fma(P(a), P(b), P(c)));
}

// What a + b rounded off, `sum` being that (Knuth's two-sum).
template <class T> SOFTXENT_INLINE T rounded_off(const T &a, const T &b, const T &sum) {
    const T of_b = sum - a;
    return (a - (sum - of_b)) + (b - of_b);
}

// top - x; 0 where t is 0, whatever x is.
SOFTXENT_INLINE Vec<double> wanted_gap(const Vec<double> &t, const Vec<double> &x, const Vec<double> &top) {
    const Vec<double> zero(0);
    return select_equal(t, zero, zero, top - x);
}

// A sum and what its additions rounded off, of doubles or of Vecs.
template <class D> struct Carried {
    D sum, lost;
    Carried() = default;
    SOFTXENT_INLINE Carried(const D &a, const D &b) : sum(a), lost(b) {}
    SOFTXENT_INLINE void add(const D &v) {
        const D next = sum + v;
        lost = lost + rounded_off(sum, v, next);
        sum = next;
    }
    // The sum less what is taken off; `rounded` gets what that rounds off.
    SOFTXENT_INLINE D less(const D &taken_off, D *rounded) const {
        const D rest = sum - taken_off, zero(0), low = lost + rounded_off(sum, zero - taken_off, rest);
        const D result = rest + low, finite = rest - rest;     // NaN where the sum is not: `low` is too, and `rest` the answer
        *rounded = select_equal(finite, zero, rounded_off(rest, low, result), zero);
        return select_equal(finite, zero, result, rest);
    }
};
SOFTXENT_INLINE Carried<double> operator*(const Carried<double> &a, double power_of_two) {
    return {a.sum * power_of_two, a.lost * power_of_two};
}
template <class D> SOFTXENT_INLINE Carried<D> operator+(const Carried<D> &a, const Carried<D> &b) {
    const D sum = a.sum + b.sum;
    return {sum, (a.lost + b.lost) + rounded_off(a.sum, b.sum, sum)};
}
SOFTXENT_INLINE Wide operator+(const Wide &a, const Wide &b) { return {a.low + b.low, a.high + b.high}; }

// leaf(0) + ... + leaf(LEAVES - 1), of which all from `count` on are 0: halves are added, i to i + LEAVES / 2, until one is
// left. The order is that in which `total` adds lanes.
template <int LEAVES, int N = 1, class F> SOFTXENT_INLINE auto tree_sum(F leaf, int count, int i = 0) {
    if constexpr (N == LEAVES) {
        return leaf(i);
    } else {
        auto sum = tree_sum<LEAVES, 2 * N>(leaf, count, i);
        if (i + N < count) sum = sum + tree_sum<LEAVES, 2 * N>(leaf, count, i + N);
        return sum;
    }
}

// A sum, lane by lane, whose error does not grow with the number of terms.
template <class S> struct Sum;

// float: in double.
template <> struct Sum<float> {
    static constexpr int lanes = Vec<float>::lanes;
    Wide sum{Vec<double>(0), Vec<double>(0)};
    SOFTXENT_INLINE void add(const Wide &v) { sum = sum + v; }
    SOFTXENT_INLINE void add(const Vec<float> &v) { add(widen(v)); }
    SOFTXENT_INLINE void add_gaps(const Vec<float> &weights, const Vec<float> &x, const Vec<float> &top) {
        const Wide t = widen(weights), wide = widen(x), most = widen(top);
        sum.low = fma(t.low, wanted_gap(t.low, wide.low, most.low), sum.low);
        sum.high = fma(t.high, wanted_gap(t.high, wide.high, most.high), sum.high);
    }
    // All lanes together; what that rounds off, float exponentials are not worth.
    SOFTXENT_INLINE Carried<double> value() const { return {total(sum.low + sum.high), 0}; }
    // The same, less what is taken off, for rows that stand in the lanes: slots[i] is what lane i of a Sum of their own
    // would hold, 0 from `count` on.
    SOFTXENT_INLINE static void values_less(const Wide *slots, int count, const float *taken_off, double *values, double *rounded) {
        const Wide sum = tree_sum<lanes>([=](int i) { return slots[i]; }, count), off = widen(load(taken_off));
        store(values, sum.low - off.low);
        store(values + lanes / 2, sum.high - off.high);
        store(rounded, Vec<double>(0));
        store(rounded + lanes / 2, Vec<double>(0));
    }
};

// double: each lane carries what its additions rounded off, and so do the additions of the lanes.
template <> struct Sum<double> {
    static constexpr int lanes = Vec<double>::lanes;
    Carried<Vec<double>> sum{Vec<double>(0), Vec<double>(0)};
    SOFTXENT_INLINE void add(const Vec<double> &v) {
        const Vec<double> next = sum.sum + v;
        sum = {next, sum.lost + rounded_off(sum.sum, v, next)};
    }
    SOFTXENT_INLINE void add_gaps(const Vec<double> &weights, const Vec<double> &x, const Vec<double> &top) {
        add(weights * wanted_gap(weights, x, top));
    }
    SOFTXENT_INLINE Carried<double> value() const {
        double sums[lanes], lost[lanes];
        store(sums, sum.sum);
        store(lost, sum.lost);
        return tree_sum<lanes>([&](int i) { return Carried<double>{sums[i], lost[i]}; }, lanes);
    }
    SOFTXENT_INLINE static void values_less(
        const Carried<Vec<double>> *slots, int count, const double *taken_off, double *values, double *rounded
    ) {
        Vec<double> low;
        store(values, tree_sum<lanes>([=](int i) { return slots[i]; }, count).less(load(taken_off), &low));
        store(rounded, low);
    }
};

SOFTXENT_INLINE bool is_finite(double x) { return x - x == 0; }
// Whether all lanes are numbers so far below the largest that a few thousand like them can still be added up.
SOFTXENT_INLINE bool has_room(const Sum<double> &sum) {
    const Vec<double> zero(0), v = sum.sum.sum * Vec<double>(0x1p20);
    return equal_bits(v - v, zero) == equal_bits(zero, zero);
}

// Where a row's gaps m - x do not fit into a double, they are counted in a unit so large that they do, whatever the
// temperature that they are divided by. FAR_STEP times FAR_STEP is its inverse: one number would be too small to divide by.
inline constexpr double FAR_STEP = 0x1p-512;
// What the mean divides by is counted in another unit if its size is below this or above the inverse.
inline constexpr double LEAST_DIVISOR = 0x1p-1000;

// exp, by the textbook split exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln(2) / 2.
inline constexpr double LOG2E = 0x1.71547652b82fep0, LN2 = 0x1.62e42fefa39efp-1;

template <class T> struct ExpConstants;
template <> struct ExpConstants<float> {
    static constexpr double LN2_HI = 0x1.62e8p-1, LN2_LO = -0x1.e8082ep-16;   // n * LN2_HI is exact
    static constexpr double ROUNDER = 0x1.8p23;                // adding it leaves round(x) in the low mantissa bits
    static constexpr double EXPONENT_OF_ONE = 127, HEADROOM = 40, UNIT = 0x1p40, SHIFT_FROM = 512;
    // (exp(r) - 1 - r) / r^2 on |r| <= 0.35, highest power first
    static constexpr double POLYNOMIAL[] = {0x1.6a3ffcp-10, 0x1.1239ecp-7, 0x1.5558bep-5, 0x1.555492p-3, 0x1.fffffcp-2};
};
template <> struct ExpConstants<double> {
    static constexpr double LN2_HI = 0x1.62e42fefa4p-1, LN2_LO = -0x1.8432a1b0e2634p-43;
    static constexpr double ROUNDER = 0x1.8p52;
    static constexpr double EXPONENT_OF_ONE = 1023, HEADROOM = 128, UNIT = 0x1p128, SHIFT_FROM = 4096;
    static constexpr double POLYNOMIAL[] = {
        0x1.af20bc852ec32p-26, 0x1.28ac594adffe9p-22, 0x1.71ddd21698b3cp-19, 0x1.a0199c7433484p-16, 0x1.a01a01f84ea5ap-13,
        0x1.6c16c182e1af3p-10, 0x1.11111110f0fb7p-7,  0x1.5555555550e41p-5,  0x1.555555555564ep-3,  0x1.000000000000ap-1};
};

// The unit that one row's exponentials are counted in: 2^(n0 - HEADROOM), n0 = round(m / ln 2), m the row's largest logit.
//
// Dividing by a power of two near e^m instead of by e^m itself costs nothing, since it only moves exponents, and
// x - m is never formed: its rounding alone would be 16 ulp of the exponential at a spread of 40. HEADROOM keeps all
// that can matter among the normal numbers; one product at the end scales back and rounds once, subnormals included.
// Only where |m| >= SHIFT_FROM is m subtracted first: there the difference is exact for every x near enough to count.
template <class S, class D> struct Unit {
    D shift, n0, lowest, rounder;

    Unit() = default;
    SOFTXENT_INLINE explicit Unit(const D &m) {
        using K = ExpConstants<S>;
        const D zero(0), size = maximum(m, zero - m);
        shift = select_equal(maximum(D(K::SHIFT_FROM), size), size, m, zero);
        n0 = (m - shift) * D(LOG2E) + D(K::ROUNDER) - D(K::ROUNDER);
        const D exponent = D(K::EXPONENT_OF_ONE + K::HEADROOM) - n0;
        rounder = D(K::ROUNDER) + exponent;
        lowest = (zero - exponent) * D(LN2);                   // the exponent field comes out as 0: the factor 0.0
    }
};

template <class S> using RowUnit = Unit<S, S>;
template <class S> using LanesUnit = Unit<S, Lanes<S>>;

// What the loss of a row is made of: weight * (mass * log1p((R + R_low) / e_top) + cross + unit * z_loss * lse^2), with
// e_top = unit_size * exp(over - n0 ln 2) and lse = m + log1p((R + R_low) / e_top). The unit is 1, but for a row whose loss
// is too large for a double until its weight brings it back: there mass and cross are multiplied by it, and the weight is
// divided by it.
struct alignas(64) RowNumbers {
    static constexpr int rows = 32;
    double R[rows], R_low[rows], m[rows], over[rows], n0[rows], mass[rows], cross[rows], weight[rows], unit[rows];
};
static_assert(RowNumbers::rows >= Lanes<float>::lanes && RowNumbers::rows >= Lanes<double>::lanes, "a row to each lane");

// What the lanes of P's registers, from register i on, are to use of a number for all or of one for each.
template <class P> SOFTXENT_INLINE P for_lanes(double x, int) { return P(x); }
template <class P, class S, int N> SOFTXENT_INLINE P for_lanes(const Pack<S, N> &v, int i) {
    return part<static_cast<int>(sizeof(P) / sizeof(Register<S>))>(v, i);
}

// exp(x) counted in the row's unit, for x <= m. Max error 1.02 ulp in float, 1.1 ulp in double; exactly 0 from about
// HEADROOM + EXPONENT_OF_ONE powers of two below the row's largest down to -inf; NaN stays NaN; all NaN if m is infinite.
template <class S, int N, class U> SOFTXENT_INLINE Pack<S, N> exp(const Pack<S, N> &all, const U &unit) {
    constexpr int M = N < isa::IN_FLIGHT ? N : isa::IN_FLIGHT;  // no more chains of operations at once than registers hold
    using K = ExpConstants<S>;
    using P = Pack<S, M>;
    Pack<S, N> out;
    for (int i = 0; i < N; i += M) {
        const P rounder = for_lanes<P>(unit.rounder, i);
        const P x = maximum(for_lanes<P>(unit.lowest, i), part<M>(all, i) - for_lanes<P>(unit.shift, i));
        const P biased = fma(x, P(LOG2E), rounder), n = biased - rounder;
        const P r = fma(n, P(-K::LN2_LO), fma(n, P(-K::LN2_HI), x));       // the inner one exact: LN2_HI leaves room for n
        P q(K::POLYNOMIAL[0]);
        for (std::size_t j = 1; j < sizeof(K::POLYNOMIAL) / sizeof(double); ++j) q = fma(q, r, P(K::POLYNOMIAL[j]));
        const P power = map([](auto b) { return isa::shift_to_exponent(b); }, biased);
        const P e = fma(fma(r * r, q, r), power, power);       // (1 + r + r^2 q) * 2^n, the 1 never rounded
        for (int j = 0; j < M; ++j) out.r[i + j] = e.r[j];
    }
    return out;
}

// The exponentials of a Block at x, folded like fold_sum does; they are written to e, which may be x, unless it is NULL.
// What is added up is taken together, so that few registers are in use at once.
template <class S, class U> SOFTXENT_INLINE Vec<S> exp_block(const S *x, S *e, const U &unit) {
    constexpr int step = Vec<S>::lanes;
    Vec<S> sums;
    std::ptrdiff_t i = 0;
    for (auto &sum : sums.r) {
        Pack<S, 4> v;
        for (int j = 0; j < 4; ++j) v.r[j] = isa::load(x + i + j * step);
        v = exp(v, unit);
        if (e != nullptr)
            for (int j = 0; j < 4; ++j) isa::store(e + i + j * step, v.r[j]);
        sum = fold<1>(v, [](auto a, auto b) { return isa::add(a, b); }).r[0];
        i += Vec<S>::width;
    }
    return sums;
}

// The denominator of a row's probabilities, R + e_top.
template <class S, class D = double> struct Denominator {
    D sum, low, inverse;                                       // low: what the sum rounds off

    Denominator() = default;
    SOFTXENT_INLINE Denominator(const D &R, const D &R_low, const D &e_top) : sum(R + e_top) {
        low = rounded_off(e_top, R, sum) + R_low;
        inverse = D(1) / sum;
    }
    // a over it, for a gradient stored as S: where that is double, the roundings on the way are made good.
    SOFTXENT_INLINE D under(const D &a) const {
        const D quotient = a * inverse;
        if constexpr (sizeof(S) < sizeof(double)) return quotient;
        return quotient + (exact_fma(D(0) - quotient, sum, a) - quotient * low) * inverse;
    }
};

template <class S> constexpr double unit_size(const S *) { return ExpConstants<S>::UNIT; }
template <class S> constexpr double smallest_normal(const S *) { return std::numeric_limits<S>::min(); }
template <class S> constexpr double largest_number(const S *) { return std::numeric_limits<S>::max(); }
// Of a gradient: its factors, rounded to S, are far from the largest number.
template <class S> constexpr double largest_scale(const S *) { return sizeof(S) < sizeof(double) ? 0x1p120 : 0x1p1000; }

// A number as a sum of two doubles, the second within a rounding of the first.
template <int N> struct TwoDoubles { Pack<double, N> high, low; };

// log(1 + u) for u >= 0, from log(2^k f) = k ln 2 + log f, f in [sqrt 1/2, sqrt 2), and with g = f - 1, z = g / (2 + g)
// from log(1 + g) = 2 atanh(z). The sum of the two parts is within 1 ulp; 0 at 0, u itself where u is tiny; NaN stays NaN.
template <int N> SOFTXENT_INLINE TwoDoubles<N> log1p_parts(const Pack<double, N> &u) {
    using K = ExpConstants<double>;
    using V = Pack<double, N>;
    // (2 atanh(z) - 2 z) / z^3 as a polynomial in z^2 <= 0.02945, highest power first
    constexpr double POLYNOMIAL[] = {0x1.2b5b5fb2eac92p-3, 0x1.39fe208c33457p-3, 0x1.7462b69705382p-3, 0x1.c71c62debf86bp-3,
                                     0x1.2492492df6947p-2, 0x1.99999999952b2p-2, 0x1.5555555555558p-1};
    constexpr double SQRT2 = 0x1.6a09e667f3bcdp0;
    const V one(1), s = one + u, of_one = s - u;
    const V lost = (one - of_one) + (u - (s - of_one));        // s + lost is 1 + u exactly
    const V k = map([](auto v) { return isa::exponent(v); }, s * V(SQRT2));
    const V scale = map([](auto v) { return isa::shift_to_exponent(v); }, V(K::ROUNDER + K::EXPONENT_OF_ONE) - k);
    const V exact = s * scale - one, g = exact + lost * scale, lost_of_g = (exact - g) + lost * scale;
    const V z = g / (V(2) + g), w = z * z, half_square = V(0.5) * g * g;
    V q(POLYNOMIAL[0]);
    for (std::size_t i = 1; i < sizeof(POLYNOMIAL) / sizeof(double); ++i) q = fma(q, w, V(POLYNOMIAL[i]));
    // Only k ln 2 + g is as large as the result: all that it rounds off goes with the rest.
    const V high = k * V(K::LN2_HI) + g, rest = (k * V(K::LN2_HI) - high) + g + lost_of_g * (one - g);
    return {high, rest - (half_square - (z * (half_square + w * q) + k * V(K::LN2_LO)))};
}
SOFTXENT_INLINE Vec<double> log1p(const Vec<double> &u) {
    const auto parts = log1p_parts(u);
    return parts.high + parts.low;
}

// exp(high + low) for a sum of at most ln(2) / 2, as a sum of two.
template <int N> SOFTXENT_INLINE TwoDoubles<N> exp_parts(const Pack<double, N> &high, const Pack<double, N> &low) {
    using K = ExpConstants<double>;
    using V = Pack<double, N>;
    const V r = high + low, one_r = V(1) + high;
    V q(K::POLYNOMIAL[0]);
    for (std::size_t i = 1; i < sizeof(K::POLYNOMIAL) / sizeof(double); ++i) q = fma(q, r, V(K::POLYNOMIAL[i]));
    const V tail = (high - (one_r - V(1))) + (low + r * r * q), sum = one_r + tail;
    return {sum, (one_r - sum) + tail};
}

// log1p((R + R_low) / e_top), for exponentials that are S.
template <class S, int N>
SOFTXENT_INLINE TwoDoubles<N> log_over_top(
    const Pack<double, N> &R, const Pack<double, N> &R_low, const Pack<double, N> &over, const Pack<double, N> &n0
) {
    using P = Pack<double, N>;
    constexpr double UNIT = ExpConstants<S>::UNIT;
    // log(e_top / unit_size) as a sum of two, to twice double's digits.
    const P zero(0), high = over - n0 * P(ExpConstants<double>::LN2_HI), low = zero - n0 * P(ExpConstants<double>::LN2_LO);
    if constexpr (sizeof(S) < sizeof(double)) {
        return log1p_parts(R * exp_parts(zero - high, zero - low).high * P(1 / UNIT));
    } else {
        // The roundings on the way are made good, so that those of the exponentials and of the result are what remains.
        const auto exp = exp_parts(high, low);
        const P top = exp.high * P(UNIT), top_low = exp.low * P(UNIT), ratio = R / top;
        const auto log = log1p_parts(ratio);
        const P ratio_low = exact_fma(zero - ratio, top, R) + (R_low - ratio * top_low);
        return {log.high, log.low + ratio_low / (top * (P(1) + ratio))};
    }
}

template <class S>
Vec<double> log_over_top(const S *, const Vec<double> &R, const Vec<double> &R_low, const Vec<double> &over, const Vec<double> &n0) {
    const auto log = log_over_top<S>(R, R_low, over, n0);
    return log.high + log.low;
}

// The logarithm of the sum of a row's exponentials, from that of the sum over e_top.
template <int N> SOFTXENT_INLINE TwoDoubles<N> log_sum_exp(const Pack<double, N> &m, const TwoDoubles<N> &log) {
    const Pack<double, N> one = log.high + log.low, sum = m + one;
    return {sum, rounded_off(m, one, sum) + rounded_off(log.high, log.low, one)};
}

// The losses of the rows from k on, as many as P has lanes.
template <class S, class P> SOFTXENT_INLINE P losses_at(const RowNumbers &rows, int k, double z_loss) {
    const P zero(0), mass = load_pack<P>(rows.mass + k), cross = load_pack<P>(rows.cross + k);
    const auto log = log_over_top<S>(
        load_pack<P>(rows.R + k), load_pack<P>(rows.R_low + k), load_pack<P>(rows.over + k), load_pack<P>(rows.n0 + k));
    P loss, low = zero;
    if constexpr (sizeof(S) < sizeof(double)) {
        loss = mass * (log.high + log.low) + cross;
    } else {
        const P product = mass * log.high;
        loss = product + cross;
        low = rounded_off(product, cross, loss) + exact_fma(mass, log.high, zero - product) + mass * log.low;
    }
    if (z_loss != 0) {
        const P z = P(z_loss) * load_pack<P>(rows.unit + k);
        const auto lse = log_sum_exp(load_pack<P>(rows.m + k), log);
        const P square = lse.high * lse.high, square_low = exact_fma(lse.high, lse.high, zero - square) + P(2) * lse.high * lse.low;
        // A square may be infinite where z times it is not; its last digits are then beyond the loss's.
        const P infinite(std::numeric_limits<double>::infinity());
        const P term = select_equal(square, infinite, z * lse.high * lse.high, z * square), sum = loss + term;
        low = low + rounded_off(loss, term, sum) + select_equal(square, infinite, zero, z * square_low);
        loss = sum;
    }
    // An infinite sum is the answer as it is: `low` is NaN then (inf - inf). A row of weight 0 has no loss, whatever it holds.
    const P weight = load_pack<P>(rows.weight + k);
    return select_equal(weight, zero, zero, weight * select_equal(loss - loss, zero, loss + low, loss));
}

// The losses of the first `count` rows; what stands in `losses` beyond them is overwritten too.
template <class S> void row_losses(const S *, const RowNumbers &rows, int count, double z_loss, double *losses) {
    constexpr int n = registers_of_vec<double>, several = n < 4 ? 4 : n;
    using V = Vec<double>;
    using Vs = Pack<double, several>;                          // side by side, to hide their latency
    int k = 0;
    for (; k + V::lanes < count && k + Vs::lanes <= RowNumbers::rows; k += Vs::lanes)
        store(losses + k, losses_at<S, Vs>(rows, k, z_loss));
    for (; k < count; k += V::lanes) store(losses + k, losses_at<S, V>(rows, k, z_loss));
}

// The target of a row: a distribution over its classes, or `count` amounts for some of them, the others having none; each
// is multiplied by the weight of its class, unless there are no weights.
template <class S> struct Target {
    const S *distribution;
    const std::int64_t *classes;
    const S *amounts;
    std::ptrdiff_t count;
    const S *class_weights;

    // Amount i, which is for class c.
    SOFTXENT_INLINE S amount(std::ptrdiff_t i, std::int64_t c) const {
        return class_weights == nullptr ? amounts[i] : amounts[i] * class_weights[c];
    }
};

// What all rows of a call have in common: the share of each target that goes to all classes alike, and the weight of the
// square of log sum exp.
struct Formula {
    double smoothing = 0, z_loss = 0;
};

// What a stretch of a row, or all of a row so far, contributes.
struct Part {
    Carried<double> R;                                         // the exponentials but that at `top`
    Carried<double> rest;                                      // t_j but that at `top`
    Carried<double> cross;                                     // t_j (m - x_j)
    Carried<double> gaps;                                      // m - x_j, if the target is to be smoothed
    bool far;                                                  // both are counted in the unit of FAR_STEP
    std::ptrdiff_t top;                                        // the first class with x_j = m and t_j != 0, -1 for none
    double at_top;                                             // t_j there

    // Number by number: a copy of another Part would wait for it to reach memory.
    SOFTXENT_INLINE void clear() {
        R.sum = R.lost = rest.sum = rest.lost = cross.sum = cross.lost = gaps.sum = gaps.lost = at_top = 0;
        top = -1;
        far = false;
    }
};

// The narrow kernel's sums over the n classes of a tile (see lanes.pxi), less what is taken off: for every lane what the
// wide kernel's Sum of Blocks would give. term(lane, c) is what class c has to add in the Vec of rows from `lane` on.
template <class S, class F>
SOFTXENT_INLINE void lane_sums_of(F term, std::ptrdiff_t n, const S *taken_off, double *values, double *rounded) {
    constexpr int step = Vec<S>::lanes, block = Block<S>::lanes;
    const std::ptrdiff_t blocks_end = n - n % block;
    const int count = n < step ? static_cast<int>(n) : step;
    decltype(Sum<S>::sum) slots[step];
    for (int lane = 0; lane < Lanes<S>::lanes; lane += step) {
        for (int i = 0; i < count; ++i) {
            Sum<S> sum;
            std::ptrdiff_t c = i;
            for (; c < blocks_end; c += block)
                sum.add((term(lane, c) + term(lane, c + 2 * step)) + (term(lane, c + step) + term(lane, c + 3 * step)));
            for (; c < n; c += step) sum.add(term(lane, c));
            slots[i] = sum.sum;
        }
        Sum<S>::values_less(slots, count, taken_off + lane, values + lane, rounded + lane);
    }
}
template <class S> SOFTXENT_INLINE Vec<S> all_but(const Vec<S> &left_out, const S *v, std::ptrdiff_t c) {
    return select_equal(Vec<S>(static_cast<double>(c)), left_out, Vec<S>(0), load(v + c * Lanes<S>::lanes));
}
// Of v, but for the class that each lane leaves out.
template <class S>
void lane_sums(const S *v, std::ptrdiff_t n, const S *left_out, const S *taken_off, double *values, double *rounded) {
    lane_sums_of([=](int lane, std::ptrdiff_t c) { return all_but(load(left_out + lane), v + lane, c); }, n, taken_off, values, rounded);
}
// Of m - x.
template <class S> void lane_gap_sums(const S *x, std::ptrdiff_t n, const S *m, double *values) {
    constexpr int lanes = Lanes<S>::lanes;
    const S nothing[lanes] = {};
    double rounded[lanes];
    lane_sums_of([=](int lane, std::ptrdiff_t c) { return load(m + lane) - load(x + lane + c * lanes); }, n, nothing, values, rounded);
}
// Of distributions t: their gaps to m, and what they give to all classes but the one that each lane leaves out, with what
// that sum rounds off.
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
        const Vec<S> left = load(left_out + lane), top = load(m + lane);
        for (int i = 0; i < count; ++i) {
            Sum<S> gap, weight;
            for (std::ptrdiff_t c = i; c < n; c += step) {
                gap.add_gaps(load(t + c * lanes), load(x + c * lanes), top);
                weight.add(all_but(left, t, c));
            }
            gap_slots[i] = gap.sum;
            weight_slots[i] = weight.sum;
        }
        Sum<S>::values_less(gap_slots, count, nothing, gaps + lane, rounded);
        Sum<S>::values_less(weight_slots, count, nothing, weights + lane, weights_low + lane);
    }
}

// The largest absolute value of the numbers for the lanes, NaNs passed over.
inline double largest_size(const double *v, std::ptrdiff_t n) {
    Vec<double> size(0);
    const Vec<double> zero(0);
    for (std::ptrdiff_t i = 0; i < n; i += Vec<double>::lanes) size = maximum(maximum(load(v + i), zero - load(v + i)), size);
    return largest(size);
}

// What the phases of the narrow kernel know of the rows in the lanes; see lanes.pxi.
template <class S> struct alignas(64) LaneGroup {
    static constexpr int lanes = Lanes<S>::lanes;
    S m[lanes], e_top[lanes];                                  // the largest logit, and its exponential
    S top[lanes];                                              // Part.top
    double rest[lanes];                                        // Part.rest
    double mass[lanes];                                        // rows.mass and what z-loss adds to it; unset without
    S amount[lanes];                                           // of the label
    S factor[lanes], minus[lanes];                             // the gradient is factor * e + minus * t,
    S offset[lanes];                                           // and this when smoothed (else unset),
    S special[lanes], value[lanes];                            // but `value` at the class `special`
    LanesUnit<S> unit;
    std::int64_t *label;                                       // last, to leave the arrays on cache lines
};

}  // namespace softxent
