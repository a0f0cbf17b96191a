// Which instruction sets this CPU, and its operating system, can run. Every feature that a level's compiler flags
// imply is asked for by name: a CPU may have one of them without the others.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace softxent {

#if defined(__x86_64__) || defined(_M_X64)

struct CpuidRegisters { unsigned eax = 0, ebx = 0, ecx = 0, edx = 0; };

inline CpuidRegisters cpuid(unsigned leaf) {
    CpuidRegisters r;
#if defined(_MSC_VER) && !defined(__clang__)
    int highest[4], words[4];
    __cpuid(highest, 0);
    if (static_cast<unsigned>(highest[0]) < leaf) return r;
    __cpuidex(words, static_cast<int>(leaf), 0);
    r = {static_cast<unsigned>(words[0]), static_cast<unsigned>(words[1]), static_cast<unsigned>(words[2]), static_cast<unsigned>(words[3])};
#else
    if (static_cast<unsigned>(__get_cpuid_max(0, nullptr)) >= leaf) __cpuid_count(leaf, 0, r.eax, r.ebx, r.ecx, r.edx);
#endif
    return r;
}

// The register sets that the operating system saves on a task switch (XCR0); 0 where it does not say.
inline unsigned saved_registers() {
    if (!(cpuid(1).ecx >> 27 & 1)) return 0;                   // OSXSAVE
#if defined(_MSC_VER) && !defined(__clang__)
    return static_cast<unsigned>(_xgetbv(0));
#else
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

inline bool has_x86_64_v3() {
    constexpr unsigned FMA = 1u << 12, AVX = 1u << 28, F16C = 1u << 29;              // leaf 1, ecx
    constexpr unsigned BMI1 = 1u << 3, AVX2 = 1u << 5, BMI2 = 1u << 8;               // leaf 7, ebx
    constexpr unsigned XMM_YMM = 0x06;
    return (saved_registers() & XMM_YMM) == XMM_YMM && (cpuid(1).ecx & (FMA | AVX | F16C)) == (FMA | AVX | F16C) &&
           (cpuid(7).ebx & (BMI1 | AVX2 | BMI2)) == (BMI1 | AVX2 | BMI2);
}

inline bool has_x86_64_v4() {
    constexpr unsigned ALL = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;   // leaf 7, ebx: AVX-512 F DQ CD BW VL
    constexpr unsigned XMM_YMM_ZMM_MASKS = 0xe6;
    return has_x86_64_v3() && (saved_registers() & XMM_YMM_ZMM_MASKS) == XMM_YMM_ZMM_MASKS && (cpuid(7).ebx & ALL) == ALL;
}

#else

inline bool has_x86_64_v3() { return false; }
inline bool has_x86_64_v4() { return false; }

#endif

// Every CPU of this architecture has NEON.
#if defined(__aarch64__) || defined(_M_ARM64)
inline bool has_neon() { return true; }
#else
inline bool has_neon() { return false; }
#endif

}  // namespace softxent
