// Exponentials as multiples of a power of two, which each row chooses.
#pragma once

#include <limits>

#include "../vec/vec.hpp"
#include "sums.hpp"

namespace softxent {

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
// To divide by a power of two near e^m, instead of by e^m, costs nothing: it only changes exponents. And x - m is never
// formed: its rounding alone would be 16 ulp of the exponential at a spread of 40. HEADROOM keeps all exponentials that
// can matter among the normal numbers. One product at the end removes the unit and rounds once, also to a subnormal.
// If |m| >= SHIFT_FROM, m is subtracted first: there the difference is exact for every x that is near enough to matter.
template <class S, class D> struct Unit {
    D shift, n0, lowest, rounder;

    Unit() = default;
    SOFTXENT_INLINE explicit Unit(const D &m) {
        using K = ExpConstants<S>;
        D zero(0), size = maximum(m, zero - m);
        shift = select_equal(maximum(D(K::SHIFT_FROM), size), size, m, zero);
        n0 = (m - shift) * D(LOG2E) + D(K::ROUNDER) - D(K::ROUNDER);
        D exponent = D(K::EXPONENT_OF_ONE + K::HEADROOM) - n0;
        rounder = D(K::ROUNDER) + exponent;
        lowest = (zero - exponent) * D(LN2);                   // at and below it, the power of two is 0.0
    }
};

template <class S> using RowUnit = Unit<S, S>;
template <class S> using LanesUnit = Unit<S, Lanes<S>>;

// The numbers for the lanes of a P: x for all of them, or those of v from register I on, and from the first on again.
template <class P, int I = 0> SOFTXENT_INLINE P for_lanes(double x) { return P(x); }
template <class P, int I = 0, class S, int N> SOFTXENT_INLINE P for_lanes(const Pack<S, N> &v) {
    P out;
    repeat<P::registers>([&](auto i) { out.r[i] = v.r[(I + i) % N]; });
    return out;
}

// exp(x) counted in the row's unit, for x <= m. Max error 1.02 ulp in float, 1.1 ulp in double; exactly 0 from about
// HEADROOM + EXPONENT_OF_ONE powers of two below the row's largest down to -inf; NaN stays NaN; all NaN if m is infinite.
template <class S, int N, class U> SOFTXENT_INLINE Pack<S, N> exp(const Pack<S, N> &all, const U &unit) {
    using K = ExpConstants<S>;
    Pack<S, N> out;
    in_flight<N>([&](auto first, auto registers) {
        constexpr int i = first;
        using P = Pack<S, registers>;
        P rounder = for_lanes<P, i>(unit.rounder);
        P x = maximum(for_lanes<P, i>(unit.lowest), registers_from<registers, i>(all) - for_lanes<P, i>(unit.shift));
        P biased = fma(x, P(LOG2E), rounder), n = biased - rounder;
        P r = fma(n, P(-K::LN2_LO), fma(n, P(-K::LN2_HI), x));       // the inner one exact: LN2_HI leaves room for n
        P q(K::POLYNOMIAL[0]);
        for (std::size_t j = 1; j < sizeof(K::POLYNOMIAL) / sizeof(double); ++j) q = fma(q, r, P(K::POLYNOMIAL[j]));
        P power = map([](auto b) { return isa::shift_to_exponent(b); }, biased);
        set_registers<i>(&out, fma(fma(r * r, q, r), power, power));       // (1 + r + r^2 q) * 2^n, the 1 never rounded
    });
    return out;
}

// The exponentials of a Block at x, added like fold_sum does. They are written to e, which may be x, unless it is NULL, and
// to `made`. Registers that are added to each other are computed together, so that few are in use at once.
template <class S, class U> SOFTXENT_INLINE Vec<S> exp_block(const S *x, S *e, const U &unit, Block<S> *made) {
    constexpr int step = Vec<S>::lanes;
    Vec<S> sums;
    repeat<Vec<S>::registers>([&](auto register_of_sums) {
        constexpr int i = register_of_sums * Vec<S>::width;
        Pack<S, 4> v;
        repeat<4>([&](auto j) { v.r[j] = isa::load(x + i + j * step); });
        v = exp(v, unit);
        if (e != nullptr) repeat<4>([&](auto j) { isa::store(e + i + j * step, v.r[j]); });
        repeat<4>([&](auto j) { made->r[register_of_sums + j * Vec<S>::registers] = v.r[j]; });
        sums.r[register_of_sums] = fold<1>(v, [](auto a, auto b) { return isa::add(a, b); }).r[0];
    });
    return sums;
}

template <class S> constexpr double unit_size(const S *) { return ExpConstants<S>::UNIT; }

}  // namespace softxent
