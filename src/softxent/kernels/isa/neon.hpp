// NEON, which every AArch64 CPU has, and fused multiply-add with it: four 128-bit registers to a Vec. See vec.hpp for what
// each function means.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace softxent::isa {

using f32 = float32x4_t;
using f64 = float64x2_t;
constexpr int IN_FLIGHT = 8;                                   // registers that exp works on side by side
constexpr bool FUSED = true;                                   // fma rounds once

inline f32 broadcast(float x) { return vdupq_n_f32(x); }
inline f64 broadcast(double x) { return vdupq_n_f64(x); }
inline f32 load(const float *p) { return vld1q_f32(p); }
inline f64 load(const double *p) { return vld1q_f64(p); }
inline void store(float *p, f32 v) { vst1q_f32(p, v); }
inline void store(double *p, f64 v) { vst1q_f64(p, v); }
// Plain stores: there is no intrinsic for STNP, and cores stop allocating cache lines in a run of stores by themselves.
inline void stream(float *p, f32 v) { store(p, v); }
inline void stream(double *p, f64 v) { store(p, v); }
inline void fence_streams() {}

// A number for each lane, from f(lane).
template <class T, class F> SOFTXENT_INLINE auto each_lane(F f) {
    T lanes[16 / sizeof(T)];
    for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) lanes[i] = f(i);
    return load(lanes);
}

inline uint16x4_t load_bits(const void *p) { return vld1_u16(static_cast<const std::uint16_t *>(p)); }
inline void store_bits(void *p, uint16x4_t bits) { vst1_u16(static_cast<std::uint16_t *>(p), bits); }
inline f32 load(const Half *p) { return vcvt_f32_f16(vreinterpret_f16_u16(load_bits(p))); }
inline void store(Half *p, f32 v) { store_bits(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline f32 load(const BFloat16 *p) { return vreinterpretq_f32_u32(vshll_n_u16(load_bits(p), 16)); }
// Half a unit less a bit, and the bit that makes a tie even, carry into the upper 16 bits; a NaN is only made quiet.
inline void store(BFloat16 *p, f32 v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    store_bits(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
}

inline f32 load_first(const float *p, int n, f32 fill) {
    switch (n) {
    case 0: return fill;
    case 1: return vld1q_lane_f32(p, fill, 0);
    case 2: return vcombine_f32(vld1_f32(p), vget_high_f32(fill));
    case 3: return vcombine_f32(vld1_f32(p), vld1_lane_f32(p + 2, vget_high_f32(fill), 0));
    default: return load(p);
    }
}
inline f64 load_first(const double *p, int n, f64 fill) {
    switch (n) {
    case 0: return fill;
    case 1: return vld1q_lane_f64(p, fill, 0);
    default: return load(p);
    }
}
inline void store_first(float *p, int n, f32 v) {
    if (n == 4) return store(p, v);
    if (n & 2) vst1_f32(p, vget_low_f32(v));
    if (n == 3) vst1q_lane_f32(p + 2, v, 2);
    if (n == 1) vst1q_lane_f32(p, v, 0);
}
inline void store_first(double *p, int n, f64 v) {
    if (n == 2) return store(p, v);
    if (n == 1) vst1q_lane_f64(p, v, 0);
}

inline f32 add(f32 a, f32 b) { return vaddq_f32(a, b); }
inline f64 add(f64 a, f64 b) { return vaddq_f64(a, b); }
inline f32 sub(f32 a, f32 b) { return vsubq_f32(a, b); }
inline f64 sub(f64 a, f64 b) { return vsubq_f64(a, b); }
inline f32 mul(f32 a, f32 b) { return vmulq_f32(a, b); }
inline f64 mul(f64 a, f64 b) { return vmulq_f64(a, b); }
inline f32 div(f32 a, f32 b) { return vdivq_f32(a, b); }
inline f64 div(f64 a, f64 b) { return vdivq_f64(a, b); }
inline f32 fma(f32 a, f32 b, f32 c) { return vfmaq_f32(c, a, b); }
inline f64 fma(f64 a, f64 b, f64 c) { return vfmaq_f64(c, a, b); }
inline f64 exact_fma(f64 a, f64 b, f64 c) { return fma(a, b, c); }
// Not FMAX, which returns NaN where either is NaN, and 0 of 0 and -0.
inline f32 maximum(f32 a, f32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline f32 minimum(f32 a, f32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline f64 maximum(f64 a, f64 b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
inline f64 minimum(f64 a, f64 b) { return vbslq_f64(vcltq_f64(a, b), a, b); }

inline unsigned equal_bits(f32 a, f32 b) {
    static constexpr std::uint32_t LANE_BITS[] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vceqq_f32(a, b), vld1q_u32(LANE_BITS)));
}
inline unsigned equal_bits(f64 a, f64 b) {
    static constexpr std::uint64_t LANE_BITS[] = {1, 2};
    return static_cast<unsigned>(vaddvq_u64(vandq_u64(vceqq_f64(a, b), vld1q_u64(LANE_BITS))));
}
inline f32 select_equal(f32 a, f32 b, f32 yes, f32 no) { return vbslq_f32(vceqq_f32(a, b), yes, no); }
inline f64 select_equal(f64 a, f64 b, f64 yes, f64 no) { return vbslq_f64(vceqq_f64(a, b), yes, no); }
inline f32 count_greater(f32 n, f32 a, f32 b) { return vbslq_f32(vcgtq_f32(a, b), add(n, vdupq_n_f32(1)), n); }
inline f64 count_greater(f64 n, f64 a, f64 b) { return vbslq_f64(vcgtq_f64(a, b), add(n, vdupq_n_f64(1)), n); }
// The first sizeof(T) bytes, as lanes of 32 bits.
template <class T> inline uint32x4_t load_bytes(const unsigned char *p) {
    T bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes))));
}
inline f32 select_bytes(const unsigned char *p, f32 yes, f32 no) {
    return vbslq_f32(vceqq_u32(load_bytes<std::uint32_t>(p), vdupq_n_u32(0)), no, yes);
}
inline f64 select_bytes(const unsigned char *p, f64 yes, f64 no) {
    return vbslq_f64(vceqq_u64(vmovl_u32(vget_low_u32(load_bytes<std::uint16_t>(p))), vdupq_n_u64(0)), no, yes);
}

// The low bits of the representation moved up to where the exponent is.
inline f32 shift_to_exponent(f32 v) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(v), 23)); }
inline f64 shift_to_exponent(f64 v) { return vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(v), 52)); }

// floor(log2 v) of a positive, normal v; any number for NaN.
inline f64 exponent(f64 v) {
    return vsubq_f64(vcvtq_f64_u64(vshrq_n_u64(vreinterpretq_u64_f64(v), 52)), vdupq_n_f64(1023));
}

inline void widen(f32 v, f64 *out) {
    out[0] = vcvt_f64_f32(vget_low_f32(v));
    out[1] = vcvt_high_f64_f32(v);
}
inline f32 narrow(f64 low, f64 high) { return vcvt_high_f32_f64(vcvt_f32_f64(low), high); }

inline f64 load_as_double(const float *p) { return vcvt_f64_f32(vld1_f32(p)); }
inline f64 load_as_double(const double *p) { return load(p); }
inline void store_rounded(float *p, f64 v) { vst1_f32(p, vcvt_f32_f64(v)); }
inline void store_rounded(double *p, f64 v) { store(p, v); }

// A register is one 128-bit quarter of a Vec: there is one row to load or store, and nothing between quarters to transpose.
template <int> inline f32 load_quarters(const float *const *at, std::ptrdiff_t j) { return load(at[0] + j); }
template <int> inline f64 load_quarters(const double *const *at, std::ptrdiff_t j) { return load(at[0] + j); }
template <int> inline void store_quarters(float *const *at, std::ptrdiff_t j, f32 v) { store(at[0] + j, v); }
template <int> inline void store_quarters(double *const *at, std::ptrdiff_t j, f64 v) { store(at[0] + j, v); }
inline void transpose_in_quarters(f64 *r) {
    const f64 a = r[0], b = r[1];
    r[0] = vzip1q_f64(a, b);
    r[1] = vzip2q_f64(a, b);
}
inline void transpose_in_quarters(f32 *r) {
    // Pairs of lanes of two rows each, which are then transposed as if they were doubles.
    f64 upper[] = {vreinterpretq_f64_f32(vzip1q_f32(r[0], r[1])), vreinterpretq_f64_f32(vzip1q_f32(r[2], r[3]))};
    f64 lower[] = {vreinterpretq_f64_f32(vzip2q_f32(r[0], r[1])), vreinterpretq_f64_f32(vzip2q_f32(r[2], r[3]))};
    transpose_in_quarters(upper);
    transpose_in_quarters(lower);
    for (int i = 0; i < 2; ++i) {
        r[i] = vreinterpretq_f32_f64(upper[i]);
        r[2 + i] = vreinterpretq_f32_f64(lower[i]);
    }
}
template <int> inline void transpose_quarters(f32 *) {}
template <int> inline void transpose_quarters(f64 *) {}

// The columns of rows of N numbers, one row after the other; N is 2 or 3.
template <int N> inline void load_columns(const float *p, f32 *r) {
    const auto columns = [=] {
        if constexpr (N == 2) return vld2q_f32(p);
        else return vld3q_f32(p);
    }();
    for (int c = 0; c < N; ++c) r[c] = columns.val[c];
}
template <int N> inline void store_columns(float *p, const f32 *r) {
    if constexpr (N == 2) {
        const float32x4x2_t columns = {{r[0], r[1]}};
        vst2q_f32(p, columns);
    } else {
        const float32x4x3_t columns = {{r[0], r[1], r[2]}};
        vst3q_f32(p, columns);
    }
}

inline double lane0(f32 v) { return vgetq_lane_f32(v, 0); }
inline double lane0(f64 v) { return vgetq_lane_f64(v, 0); }
inline double total(f64 v) { return vpaddd_f64(v); }
inline double largest(f32 v) {
    const f32 a = maximum(v, vextq_f32(v, v, 2));
    return lane0(maximum(a, vextq_f32(a, a, 1)));
}
inline double largest(f64 v) { return lane0(maximum(v, vextq_f64(v, v, 1))); }

}  // namespace softxent::isa

#include "tail_of_halves.hpp"
