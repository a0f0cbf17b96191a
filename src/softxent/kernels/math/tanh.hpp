// The hyperbolic tangent, for the capping of logits.
#pragma once

#include "exp.hpp"

namespace softxent {

// tanh(v) = u / (u + 2), u = exp(2 v) - 1, and its slope, 4 exp(2 v) / (u + 2)^2. Max error 3 ulp. The slope keeps its
// digits where 1 - tanh^2 would have lost all. It is 0 where it would be below about three times the smallest normal number.
// |tanh| is never above 1; NaN stays NaN.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> tanh(const Pack<S, N> &all, Pack<S, N> *slopes) {
    using K = ExpConstants<S>;
    constexpr double MOST = sizeof(S) < sizeof(double) ? 88 : 709;         // exp(x) is finite there, and 2^n is 0 at -MOST
    Pack<S, N> out;
    in_flight<N>([&](auto first, auto registers) {
        constexpr int i = first;
        using P = Pack<S, registers>;
        P v = registers_from<registers, i>(all), x = maximum(P(-MOST), minimum(P(MOST), v + v));
        // exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1), the split of `exp` in exp.hpp.
        P rounder(K::ROUNDER + K::EXPONENT_OF_ONE);
        P biased = fma(x, P(LOG2E), rounder), n = biased - rounder;
        P r = fma(n, P(-K::LN2_LO), fma(n, P(-K::LN2_HI), x));
        P q(K::POLYNOMIAL[0]);
        for (std::size_t j = 1; j < sizeof(K::POLYNOMIAL) / sizeof(double); ++j) q = fma(q, r, P(K::POLYNOMIAL[j]));
        P power = map([](auto b) { return isa::shift_to_exponent(b); }, biased);
        P less = fma(r * r, q, r), u = fma(less, power, power - P(1)), whole = u + P(2), half = P(2) / whole;
        set_registers<i>(&out, u / whole);
        set_registers<i>(slopes, select_equal(x, P(MOST), P(0), half * (fma(less, power, power) * half)));
    });
    return out;
}

}  // namespace softxent
