// log(1 + u), and the exponential of a small number, both as sums of two doubles.
#pragma once

#include "exp.hpp"

namespace softxent {

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
    V one(1), s = one + u, of_one = s - u;
    V lost = (one - of_one) + (u - (s - of_one));        // s + lost is 1 + u exactly
    V k = map([](auto v) { return isa::exponent(v); }, s * V(SQRT2));
    V scale = map([](auto v) { return isa::shift_to_exponent(v); }, V(K::ROUNDER + K::EXPONENT_OF_ONE) - k);
    V exact = s * scale - one, g = exact + lost * scale, lost_of_g = (exact - g) + lost * scale;
    V z = g / (V(2) + g), w = z * z, half_square = V(0.5) * g * g;
    V q(POLYNOMIAL[0]);
    for (std::size_t i = 1; i < sizeof(POLYNOMIAL) / sizeof(double); ++i) q = fma(q, w, V(POLYNOMIAL[i]));
    // k ln 2 + g is about as large as the result. What it rounds off is added to the small terms.
    V high = k * V(K::LN2_HI) + g, rest = (k * V(K::LN2_HI) - high) + g + lost_of_g * (one - g);
    return {high, rest - (half_square - (z * (half_square + w * q) + k * V(K::LN2_LO)))};
}
SOFTXENT_INLINE Vec<double> log1p(const Vec<double> &u) {
    auto parts = log1p_parts(u);
    return parts.high + parts.low;
}

// exp(high + low) as a sum of two doubles, for |high + low| <= ln(2) / 2.
template <int N> SOFTXENT_INLINE TwoDoubles<N> exp_parts(const Pack<double, N> &high, const Pack<double, N> &low) {
    using K = ExpConstants<double>;
    using V = Pack<double, N>;
    V r = high + low, one_r = V(1) + high;
    V q(K::POLYNOMIAL[0]);
    for (std::size_t i = 1; i < sizeof(K::POLYNOMIAL) / sizeof(double); ++i) q = fma(q, r, V(K::POLYNOMIAL[i]));
    V tail = (high - (one_r - V(1))) + (low + r * r * q), sum = one_r + tail;
    return {sum, (one_r - sum) + tail};
}

}  // namespace softxent
