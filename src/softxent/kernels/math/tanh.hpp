// The hyperbolic tangent, for the capping of logits.
#pragma once

#include "exp.hpp"

namespace softxent {

// tanh(v) = sign(v) u / (u + 2), u = exp(2 |v|) - 1, and its slope, 4 (u + 1) / (u + 2)^2. Max error 3 ulp. The slope
// keeps its digits where 1 - tanh^2 would have lost all; it is 0 where it would be about the smallest normal number or
// less. |tanh| is never above 1; NaN stays NaN.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> tanh(const Pack<S, N> &all, Pack<S, N> *slopes) {
    using K = ExpConstants<S>;
    constexpr double MOST = sizeof(S) < sizeof(double) ? 88 : 700;         // where exp is still finite
    Pack<S, N> out;
    in_flight<N>([&](auto first, auto registers) {
        constexpr int i = first;
        using P = Pack<S, registers>;
        P v = registers_from<registers, i>(all), zero(0), one(1), size = maximum(zero - v, v), x = minimum(P(MOST), size + size);
        // exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1), the split of `exp` in exp.hpp.
        P rounder(K::ROUNDER + K::EXPONENT_OF_ONE);
        P biased = fma(x, P(LOG2E), rounder), n = biased - rounder;
        P r = fma(n, P(-K::LN2_LO), fma(n, P(-K::LN2_HI), x));
        P q(K::POLYNOMIAL[0]);
        for (std::size_t j = 1; j < sizeof(K::POLYNOMIAL) / sizeof(double); ++j) q = fma(q, r, P(K::POLYNOMIAL[j]));
        P power = map([](auto b) { return isa::shift_to_exponent(b); }, biased);
        P u = fma(fma(r * r, q, r), power, power - one), minus_whole = P(-2) - u, inverse = P(-1) / minus_whole;
        P slope = select_equal(x, P(MOST), zero, (P(4) * inverse) * ((u + one) * inverse));
        // The quotient, corrected by what it misses: `inverse` may be subnormal.
        P quotient = u * inverse, better = minimum(one, fma(fma(quotient, minus_whole, u), inverse, quotient));
        set_registers<i>(&out, select_equal(v, size, better, zero - better));
        set_registers<i>(slopes, slope);
    });
    return out;
}

}  // namespace softxent
