// float16 and bfloat16 as they are stored, and their exact conversion in plain C++: round to nearest even, subnormals
// and infinities included, NaN kept. Instruction sets that convert whole registers do so in their own headers.
#pragma once

#include <cstdint>
#include <cstring>

namespace softxent {

template <int FRACTION, int BIAS> struct Small {
    static constexpr std::uint64_t EXPONENT_MASK = 2 * BIAS + 1, FRACTION_MASK = (1u << FRACTION) - 1;
    std::uint16_t bits;

    Small() = default;

    explicit Small(double x) {
        std::uint64_t wide;
        std::memcpy(&wide, &x, sizeof wide);
        const auto sign = static_cast<std::uint16_t>(wide >> 63 << 15);
        int exponent = static_cast<int>(wide >> 52 & 2047) - 1023;
        if (x != x) {
            bits = static_cast<std::uint16_t>(sign | EXPONENT_MASK << FRACTION | 1u << (FRACTION - 1) | (wide >> (52 - FRACTION) & FRACTION_MASK));
        } else if (exponent > BIAS) {
            bits = static_cast<std::uint16_t>(sign | EXPONENT_MASK << FRACTION);
        } else {
            if (exponent < 1 - BIAS) exponent = 1 - BIAS;
            // One unit in the last place at x, and a number so large that adding it rounds to such units.
            const double unit = power_of_two(exponent - FRACTION), rounder = 0x1.8p52 * unit;
            const double units = ((sign ? -x : x) + rounder - rounder) / unit;
            // A carry out of the fraction lands in the exponent, and out of the largest number in infinity.
            bits = static_cast<std::uint16_t>(sign + static_cast<int>(units) + ((exponent + BIAS - 1) << FRACTION));
        }
    }

    explicit operator double() const {
        const std::uint64_t exponent = bits >> FRACTION & EXPONENT_MASK, fraction = bits & FRACTION_MASK;
        const bool negative = bits >> 15;
        if (exponent == 0) return (negative ? -1.0 : 1.0) * power_of_two(1 - BIAS - FRACTION) * static_cast<double>(fraction);
        const std::uint64_t field = exponent == EXPONENT_MASK ? 2047 : exponent - BIAS + 1023;
        const std::uint64_t wide = static_cast<std::uint64_t>(negative) << 63 | field << 52 | fraction << (52 - FRACTION);
        double x;
        std::memcpy(&x, &wide, sizeof x);
        return x;
    }

  private:
    static double power_of_two(int n) {
        const std::uint64_t wide = static_cast<std::uint64_t>(n + 1023) << 52;
        double x;
        std::memcpy(&x, &wide, sizeof x);
        return x;
    }
};

using Half = Small<10, 15>;
using BFloat16 = Small<7, 127>;

}  // namespace softxent
