// The first n elements of a register of halves, for instruction sets that cannot leave some of them out.
#pragma once

#include <algorithm>
#include <type_traits>

namespace softxent::isa {

inline constexpr int HALVES = sizeof(f32) / sizeof(float);

template <class H, std::enable_if_t<sizeof(H) == 2, int> = 0> inline f32 load_first(const H *p, int n, f32 fill) {
    if (n == HALVES) return isa::load(p);
    H halves[HALVES] = {};
    float numbers[HALVES];
    std::copy_n(p, n, halves);
    isa::store(numbers, isa::load(halves));
    return isa::load_first(numbers, n, fill);
}
template <class H, std::enable_if_t<sizeof(H) == 2, int> = 0> inline void store_first(H *p, int n, f32 v) {
    if (n == HALVES) return isa::store(p, v);
    H halves[HALVES];
    isa::store(halves, v);
    std::copy_n(halves, n, p);
}

}  // namespace softxent::isa
