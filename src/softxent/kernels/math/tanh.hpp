// The hyperbolic tangent, for the capping of logits.
#pragma once

#include "exp.hpp"

namespace softxent {

// tanh(v) = sign(v) u / (u + 2), u = exp(2 |v|) - 1, and its slope, 4 (u + 1) / (u + 2)^2. Max error 3 ulp. The slope
// keeps its digits where 1 - tanh^2 would have lost all; it is 0 where it would be about the smallest normal number or
// less. |tanh| is never above 1; NaN stays NaN.
template <class S> Vec<S> tanh(const Vec<S> &v, Vec<S> *slope) {
    using K = ExpConstants<S>;
    using V = Vec<S>;
    constexpr double MOST = sizeof(S) < sizeof(double) ? 88 : 700;         // where exp is still finite
    V zero(0), one(1), minus_size = zero - maximum(zero - v, v);
    V x = zero - maximum(V(-MOST), minus_size + minus_size);
    // exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1), the split of `exp` in exp.hpp.
    V rounder(K::ROUNDER + K::EXPONENT_OF_ONE);
    V biased = fma(x, V(LOG2E), rounder), n = biased - rounder;
    V r = fma(n, V(-K::LN2_LO), fma(n, V(-K::LN2_HI), x));
    V q(K::POLYNOMIAL[0]);
    for (std::size_t j = 1; j < sizeof(K::POLYNOMIAL) / sizeof(double); ++j) q = fma(q, r, V(K::POLYNOMIAL[j]));
    V power = map([](auto b) { return isa::shift_to_exponent(b); }, biased);
    V u = fma(fma(r * r, q, r), power, power - one), whole = u + V(2), inverse = one / whole;
    *slope = select_equal(x, V(MOST), zero, (V(4) * inverse) * ((u + one) * inverse));
    // The quotient, corrected by what it misses: `inverse` may be subnormal.
    V quotient = u * inverse, better = fma(fma(zero - quotient, whole, u), inverse, quotient);
    V size = zero - maximum(zero - one, zero - better);
    return select_equal(zero - v, minus_size, size, zero - size);
}

}  // namespace softxent
