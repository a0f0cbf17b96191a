// The vocabulary of the kernels: a stretch of a row as one value, whatever the instruction set.
//
// Vec<S> holds 64 bytes' worth of lanes (16 float, 8 double) and Block<S> four times that, in as many registers as the
// instruction set needs. Every level runs the same operations on the same lanes in the same order, so where fused
// multiply-add exists the results are the same bits. One header per instruction set supplies a table of functions over
// single registers (namespace isa); everything here is built from that table and written once.
//
// Assumes round-to-nearest and -ffp-contract=off. Never allocates, throws, or touches memory beyond the lanes asked for.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "halves.hpp"

#if defined(_MSC_VER) && !defined(__clang__)
#define SOFTXENT_INLINE __forceinline
#else
#define SOFTXENT_INLINE inline __attribute__((always_inline))
#endif

#if defined(SOFTXENT_AVX512)
#include "vec_avx512.hpp"
#elif defined(SOFTXENT_AVX2)
#include "vec_avx2.hpp"
#else
#include "vec_scalar.hpp"
#endif

namespace softxent {

template <class S> struct RegisterOf;
template <> struct RegisterOf<float> { using type = isa::f32; };
template <> struct RegisterOf<double> { using type = isa::f64; };
template <class S> using Register = typename RegisterOf<S>::type;

// N registers of consecutive lanes.
template <class S, int N> struct Pack {
    static constexpr int width = static_cast<int>(sizeof(Register<S>) / sizeof(S));   // lanes of one register
    static constexpr int lanes = N * width;
    Register<S> r[N];

    Pack() = default;
    SOFTXENT_INLINE explicit Pack(double x) {                  // x in every lane
        for (auto &v : r) v = isa::broadcast(static_cast<S>(x));
    }
};

template <class S> inline constexpr int registers_of_vec = 64 / static_cast<int>(sizeof(Register<S>));
template <class S> using Vec = Pack<S, registers_of_vec<S>>;
template <class S> using Block = Pack<S, 4 * registers_of_vec<S>>;

template <class S> constexpr std::ptrdiff_t vec_lanes(const S *) { return Vec<S>::lanes; }
template <class S> constexpr std::ptrdiff_t block_lanes(const S *) { return Block<S>::lanes; }

// Where in a row of n elements at p the first cache line starts; 0 in a row too short for that to matter.
template <class S> SOFTXENT_INLINE std::ptrdiff_t line_start(const S *p, std::ptrdiff_t n) {
    const std::size_t past = reinterpret_cast<std::size_t>(p) % 64;
    return past == 0 || n < Block<S>::lanes ? 0 : static_cast<std::ptrdiff_t>((64 - past) / sizeof(S));
}

// f applied register by register.
template <class S, int N, class F, class... Packs>
SOFTXENT_INLINE Pack<S, N> map(F f, const Pack<S, N> &first, const Packs &...others) {
    Pack<S, N> out;
    for (int i = 0; i < N; ++i) out.r[i] = f(first.r[i], others.r[i]...);
    return out;
}

// M of v's registers, from register i on.
template <int M, class S, int N> SOFTXENT_INLINE Pack<S, M> part(const Pack<S, N> &v, int i) {
    Pack<S, M> out;
    for (int j = 0; j < M; ++j) out.r[j] = v.r[i + j];
    return out;
}

template <class P, class S> SOFTXENT_INLINE P load_pack(const S *p) {
    P out;
    int i = 0;
    for (auto &r : out.r) r = isa::load(p + P::width * i++);
    return out;
}
template <class S> SOFTXENT_INLINE Vec<S> load(const S *p) { return load_pack<Vec<S>>(p); }
template <class S> SOFTXENT_INLINE Block<S> load_block(const S *p) { return load_pack<Block<S>>(p); }

template <class S, int N> SOFTXENT_INLINE void store(S *p, const Pack<S, N> &v) {
    for (int i = 0; i < N; ++i) isa::store(p + i * Pack<S, N>::width, v.r[i]);
}

// A row of halves as floats, or of floats as halves.
template <class From, class To> void convert_row(const From *from, To *to, std::ptrdiff_t n) {
    constexpr std::ptrdiff_t width = Pack<float, 1>::width;
    std::ptrdiff_t i = 0;
    for (; i + width <= n; i += width) isa::store(to + i, isa::load(from + i));
    if (i < n) {
        From rest[width] = {};
        To converted[width];
        std::memcpy(rest, from + i, static_cast<std::size_t>(n - i) * sizeof(From));
        isa::store(converted, isa::load(rest));
        std::memcpy(to + i, converted, static_cast<std::size_t>(n - i) * sizeof(To));
    }
}

// How many of a Vec's first n lanes lie in its register i.
template <class S> SOFTXENT_INLINE int lanes_in(std::ptrdiff_t n, int i) {
    const int rest = static_cast<int>(n) - i * Vec<S>::width;
    return rest < 0 ? 0 : rest > Vec<S>::width ? Vec<S>::width : rest;
}

// The first n lanes from memory, 0 < n <= lanes; the others hold `fill`, and their memory is not touched.
template <class S> SOFTXENT_INLINE Vec<S> load_first(const S *p, std::ptrdiff_t n, double fill) {
    Vec<S> out(fill);
    int i = 0;
    for (auto &r : out.r) {
        r = isa::load_first(p + i * Vec<S>::width, lanes_in<S>(n, i), r);
        ++i;
    }
    return out;
}
template <class S> SOFTXENT_INLINE void store_first(S *p, std::ptrdiff_t n, const Vec<S> &v) {
    for (int i = 0; i < registers_of_vec<S>; ++i) isa::store_first(p + i * Vec<S>::width, lanes_in<S>(n, i), v.r[i]);
}

template <class S, int N> SOFTXENT_INLINE Pack<S, N> operator+(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::add(x, y); }, a, b);
}
template <class S, int N> SOFTXENT_INLINE Pack<S, N> operator-(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::sub(x, y); }, a, b);
}
template <class S, int N> SOFTXENT_INLINE Pack<S, N> operator*(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::mul(x, y); }, a, b);
}
template <class S, int N> SOFTXENT_INLINE Pack<S, N> operator/(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::div(x, y); }, a, b);
}
// a * b + c, rounded once where the level has a fused multiply-add.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> fma(const Pack<S, N> &a, const Pack<S, N> &b, const Pack<S, N> &c) {
    return map([](auto x, auto y, auto z) { return isa::fma(x, y, z); }, a, b, c);
}
// The same, rounded once at every level.
template <int N> SOFTXENT_INLINE Pack<double, N> exact_fma(const Pack<double, N> &a, const Pack<double, N> &b, const Pack<double, N> &c) {
    return map([](auto x, auto y, auto z) { return isa::exact_fma(x, y, z); }, a, b, c);
}
// The larger of the two; b where either is NaN.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> maximum(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::maximum(x, y); }, a, b);
}
// a == b ? yes : no, lane by lane.
template <class S, int N>
SOFTXENT_INLINE Pack<S, N> select_equal(const Pack<S, N> &a, const Pack<S, N> &b, const Pack<S, N> &yes, const Pack<S, N> &no) {
    return map([](auto x, auto y, auto u, auto v) { return isa::select_equal(x, y, u, v); }, a, b, yes, no);
}

// One bit per lane, set where a == b.
template <class S, int N> SOFTXENT_INLINE unsigned equal_bits(const Pack<S, N> &a, const Pack<S, N> &b) {
    unsigned bits = 0;
    for (int i = 0; i < N; ++i) bits |= isa::equal_bits(a.r[i], b.r[i]) << (i * Pack<S, N>::width);
    return bits;
}
SOFTXENT_INLINE int lowest_bit(unsigned bits) {
    int i = 0;
    while (!(bits >> i & 1)) ++i;
    return i;
}

// 0, 1, 2 ... along the lanes.
template <class S> SOFTXENT_INLINE Vec<S> lane_numbers() {
    static constexpr S numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load(numbers);
}
// v with lane i set to 0; i may be no lane of v.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> without_lane(const Pack<S, N> &v, std::ptrdiff_t i) {
    return select_equal(lane_numbers<S>(), Vec<S>(static_cast<double>(i)), Vec<S>(0), v);
}

// Lanes are combined as halves, i with i + n/2, until M registers are left: the same tree at every register width.
template <int M, class S, int N, class F> SOFTXENT_INLINE Pack<S, M> fold(Pack<S, N> v, F f) {
    for (int n = N / 2; n >= M; n /= 2)
        for (int i = 0; i < n; ++i) v.r[i] = f(v.r[i], v.r[i + n]);
    return part<M>(v, 0);
}
template <class S, int N> SOFTXENT_INLINE double first(const Pack<S, N> &v) { return isa::first(v.r[0]); }
template <class S, int N> SOFTXENT_INLINE double largest(const Pack<S, N> &v) {
    return isa::largest(fold<1>(v, [](auto a, auto b) { return isa::maximum(a, b); }).r[0]);
}
// A Block's lanes that lie a Vec apart, combined.
template <class S> SOFTXENT_INLINE Vec<S> fold_sum(const Block<S> &v) {
    return fold<registers_of_vec<S>>(v, [](auto a, auto b) { return isa::add(a, b); });
}
template <class S> SOFTXENT_INLINE Vec<S> fold_largest(const Block<S> &v) {
    return fold<registers_of_vec<S>>(v, [](auto a, auto b) { return isa::maximum(a, b); });
}
SOFTXENT_INLINE double total(const Vec<double> &v) {
    return isa::total(fold<1>(v, [](auto a, auto b) { return isa::add(a, b); }).r[0]);
}

// The lanes of a float Vec as doubles.
struct Wide { Vec<double> low, high; };
SOFTXENT_INLINE Wide widen(const Vec<float> &v) {
    Pack<double, 2 * registers_of_vec<double>> wide;
    for (int i = 0; i < registers_of_vec<float>; ++i) isa::widen(v.r[i], wide.r + 2 * i);
    return {part<registers_of_vec<double>>(wide, 0), part<registers_of_vec<double>>(wide, registers_of_vec<double>)};
}

// t * (top - x); 0 where t is 0, whatever x is.
SOFTXENT_INLINE Vec<double> weighted_gap(const Vec<double> &t, const Vec<double> &x, double top) {
    const Vec<double> zero(0);
    return select_equal(t, zero, zero, t * (Vec<double>(top) - x));
}

// What a + b rounded off, `sum` being that (Knuth's two-sum): of doubles or of Vecs.
template <class T> SOFTXENT_INLINE T rounded_off(const T &a, const T &b, const T &sum) {
    const T of_b = sum - a;
    return (a - (sum - of_b)) + (b - of_b);
}

// A sum along a row whose error does not grow with the row's length.
template <class S> struct Sum;

// float: lanes of double.
template <> struct Sum<float> {
    Wide sum{Vec<double>(0), Vec<double>(0)};
    SOFTXENT_INLINE void add(const Wide &v) { sum = {sum.low + v.low, sum.high + v.high}; }
    SOFTXENT_INLINE void add(const Vec<float> &v) { add(widen(v)); }
    SOFTXENT_INLINE void add_gaps(const Vec<float> &weights, const Vec<float> &x, double top) {
        const Wide t = widen(weights), wide = widen(x);
        add(Wide{weighted_gap(t.low, wide.low, top), weighted_gap(t.high, wide.high, top)});
    }
    SOFTXENT_INLINE double value() const { return total(sum.low + sum.high); }
    SOFTXENT_INLINE double value_less(double taken_off, double *rounded) const {
        *rounded = 0;                                          // float exponentials are not worth more
        return value() - taken_off;
    }
};

// double: each lane carries what its additions rounded off, and so do the additions of the lanes.
template <> struct Sum<double> {
    Vec<double> sum{0.0}, lost{0.0};
    SOFTXENT_INLINE void add(const Vec<double> &v) {
        const Vec<double> next = sum + v;
        lost = lost + rounded_off(sum, v, next);
        sum = next;
    }
    SOFTXENT_INLINE void add_gaps(const Vec<double> &weights, const Vec<double> &x, double top) {
        add(weighted_gap(weights, x, top));
    }
    SOFTXENT_INLINE double value() const {
        double rounded;
        return value_less(0, &rounded);
    }
    // The sum less what is taken off; `rounded` gets what that result rounds off.
    SOFTXENT_INLINE double value_less(double taken_off, double *rounded) const {
        double lanes[Vec<double>::lanes], low = total(lost);
        store(lanes, sum);
        for (int n = Vec<double>::lanes / 2; n > 0; n /= 2) {
            for (int i = 0; i < n; ++i) {
                const double next = lanes[i] + lanes[i + n];
                low += rounded_off(lanes[i], lanes[i + n], next);
                lanes[i] = next;
            }
        }
        const double rest = lanes[0] - taken_off;
        low += rounded_off(lanes[0], -taken_off, rest);
        *rounded = 0;
        if (rest - rest != 0) return rest;                     // infinite or NaN: `low` is NaN, and this the answer
        const double result = rest + low;
        *rounded = rounded_off(rest, low, result);
        return result;
    }
};

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
template <class S> struct Unit {
    double shift, lowest, rounder;
    double high, low;                                          // m = shift + n0 ln 2 + (high + low), to twice double's digits

    Unit() = default;
    SOFTXENT_INLINE explicit Unit(double m) {
        using K = ExpConstants<S>;
        using D = ExpConstants<double>;
        shift = m >= K::SHIFT_FROM || m <= -K::SHIFT_FROM ? m : 0;
        const double n0 = (m - shift) * LOG2E + D::ROUNDER - D::ROUNDER;
        const double exponent = K::EXPONENT_OF_ONE + K::HEADROOM - n0;
        rounder = K::ROUNDER + exponent;
        lowest = -exponent * LN2;                              // the exponent field comes out as 0: the factor 0.0
        high = (m - shift) - n0 * D::LN2_HI;
        low = -(n0 * D::LN2_LO);
    }
};

// exp(x) counted in the row's unit, for x <= m. Max error 1.02 ulp in float, 1.1 ulp in double; exactly 0 from about
// HEADROOM + EXPONENT_OF_ONE powers of two below the row's largest down to -inf; NaN stays NaN; all NaN if m is infinite.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> exp(Pack<S, N> x, const Unit<S> &unit) {
    if constexpr (N > isa::IN_FLIGHT) {                        // no more chains of operations at once than registers hold
        Pack<S, N> out;
        for (int i = 0; i < N; i += isa::IN_FLIGHT) {
            const auto e = exp(part<isa::IN_FLIGHT>(x, i), unit);
            for (int j = 0; j < isa::IN_FLIGHT; ++j) out.r[i + j] = e.r[j];
        }
        return out;
    } else {
        using K = ExpConstants<S>;
        using P = Pack<S, N>;
        x = maximum(P(unit.lowest), x - P(unit.shift));
        const P biased = fma(x, P(LOG2E), P(unit.rounder));
        const P n = biased - P(unit.rounder);
        const P r = fma(n, P(-K::LN2_LO), fma(n, P(-K::LN2_HI), x));       // the inner one exact: LN2_HI leaves room for n
        P q(K::POLYNOMIAL[0]);
        for (std::size_t i = 1; i < sizeof(K::POLYNOMIAL) / sizeof(double); ++i) q = fma(q, r, P(K::POLYNOMIAL[i]));
        const P power = map([](auto b) { return isa::shift_to_exponent(b); }, biased);
        return fma(fma(r * r, q, r), power, power);            // (1 + r + r^2 q) * 2^n, the 1 never rounded
    }
}

// a / (b + b_low), for a gradient stored as S: where that is double, the quotient's own rounding is made good.
template <class S> SOFTXENT_INLINE double divide(const S *, double a, double b, double b_low) {
    const double quotient = a / b;
    if constexpr (sizeof(S) < sizeof(double)) return quotient;
    return quotient + (std::fma(-quotient, b, a) - quotient * b_low) * (1 / b);
}
template <class S> constexpr double unit_size(const S *) { return ExpConstants<S>::UNIT; }
template <class S> constexpr double smallest_normal(const S *) { return std::numeric_limits<S>::min(); }

// A number as a sum of two doubles, the second within a rounding of the first.
struct TwoDoubles { Vec<double> high, low; };

// log(1 + u) for u >= 0, from log(2^k f) = k ln 2 + log f, f in [sqrt 1/2, sqrt 2), and with g = f - 1, z = g / (2 + g)
// from log(1 + g) = 2 atanh(z). The sum of the two parts is within 1 ulp; 0 at 0, u itself where u is tiny; NaN stays NaN.
SOFTXENT_INLINE TwoDoubles log1p_parts(const Vec<double> &u) {
    using K = ExpConstants<double>;
    using V = Vec<double>;
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
    const TwoDoubles parts = log1p_parts(u);
    return parts.high + parts.low;
}

// exp(high + low) for a sum of at most ln(2) / 2, as a sum of two.
SOFTXENT_INLINE TwoDoubles exp_parts(const Vec<double> &high, const Vec<double> &low) {
    using K = ExpConstants<double>;
    using V = Vec<double>;
    const V r = high + low, one_r = V(1) + high;
    V q(K::POLYNOMIAL[0]);
    for (std::size_t i = 1; i < sizeof(K::POLYNOMIAL) / sizeof(double); ++i) q = fma(q, r, V(K::POLYNOMIAL[i]));
    const V tail = (high - (one_r - V(1))) + (low + r * r * q), sum = one_r + tail;
    return {sum, (one_r - sum) + tail};
}

// mass * log(1 + (R + R_low) / top) + cross, the losses of as many rows as there are lanes, top = unit_size * exp(high + low).
// The roundings on the way are made good, so that those of the exponentials and of the result are what remains.
SOFTXENT_INLINE Vec<double> row_losses(
    const Vec<double> &R, const Vec<double> &R_low, const Vec<double> &high, const Vec<double> &low, double unit_size, const Vec<double> &mass,
    const Vec<double> &cross
) {
    using V = Vec<double>;
    const TwoDoubles exp = exp_parts(high, low);
    const V top = exp.high * V(unit_size), top_low = exp.low * V(unit_size), ratio = R / top;
    const TwoDoubles log = log1p_parts(ratio);
    const V ratio_low = exact_fma(V(-1) * ratio, top, R) + (R_low - ratio * top_low);
    const V product = mass * log.high, sum = product + cross;
    const V sum_low = rounded_off(product, cross, sum) + exact_fma(mass, log.high, V(-1) * product);
    const V rest = mass * (log.low + ratio_low / (top * (V(1) + ratio)));
    // An infinite sum is the answer as it is: sum_low is NaN then (inf - inf).
    return select_equal(sum - sum, V(0), sum + (sum_low + rest), sum);
}

}  // namespace softxent
