// AVX-512 (F, BW, CD, DQ, VL): one 512-bit register holds a whole Vec. See vec.hpp for what each function means.
#pragma once

#include <immintrin.h>

namespace softxent::isa {

using f32 = __m512;
using f64 = __m512d;
constexpr int IN_FLIGHT = 4;                                   // registers that exp works on side by side

inline f32 broadcast(float x) { return _mm512_set1_ps(x); }
inline f64 broadcast(double x) { return _mm512_set1_pd(x); }
inline f32 load(const float *p) { return _mm512_loadu_ps(p); }
inline f64 load(const double *p) { return _mm512_loadu_pd(p); }
inline void store(float *p, f32 v) { _mm512_storeu_ps(p, v); }
inline void store(double *p, f64 v) { _mm512_storeu_pd(p, v); }

inline f32 load(const Half *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
inline void store(Half *p, f32 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline f32 load(const BFloat16 *p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
// Half a unit less a bit, and the bit that makes a tie even, carry into the upper 16 bits; a NaN is only made quiet.
inline void store(BFloat16 *p, f32 v) {
    const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i chosen = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
}

inline __mmask16 mask16(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline __mmask8 mask8(int n) { return static_cast<__mmask8>((1u << n) - 1); }
inline f32 load_first(const float *p, int n, f32 fill) { return _mm512_mask_loadu_ps(fill, mask16(n), p); }
inline f64 load_first(const double *p, int n, f64 fill) { return _mm512_mask_loadu_pd(fill, mask8(n), p); }
inline void store_first(float *p, int n, f32 v) { _mm512_mask_storeu_ps(p, mask16(n), v); }
inline void store_first(double *p, int n, f64 v) { _mm512_mask_storeu_pd(p, mask8(n), v); }

inline f32 add(f32 a, f32 b) { return _mm512_add_ps(a, b); }
inline f64 add(f64 a, f64 b) { return _mm512_add_pd(a, b); }
inline f32 sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
inline f64 sub(f64 a, f64 b) { return _mm512_sub_pd(a, b); }
inline f32 mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
inline f64 mul(f64 a, f64 b) { return _mm512_mul_pd(a, b); }
inline f32 div(f32 a, f32 b) { return _mm512_div_ps(a, b); }
inline f64 div(f64 a, f64 b) { return _mm512_div_pd(a, b); }
inline f32 fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
inline f64 fma(f64 a, f64 b, f64 c) { return _mm512_fmadd_pd(a, b, c); }
inline f64 exact_fma(f64 a, f64 b, f64 c) { return fma(a, b, c); }
inline f32 maximum(f32 a, f32 b) { return _mm512_max_ps(a, b); }
inline f64 maximum(f64 a, f64 b) { return _mm512_max_pd(a, b); }

inline unsigned equal_bits(f32 a, f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline unsigned equal_bits(f64 a, f64 b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
inline f32 select_equal(f32 a, f32 b, f32 yes, f32 no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), no, yes); }
inline f64 select_equal(f64 a, f64 b, f64 yes, f64 no) { return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), no, yes); }

// The low bits of the representation moved up to where the exponent is.
inline f32 shift_to_exponent(f32 v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23)); }
inline f64 shift_to_exponent(f64 v) { return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(v), 52)); }

// floor(log2 v) of a positive, normal v; NaN for NaN.
inline f64 exponent(f64 v) { return _mm512_getexp_pd(v); }

inline void widen(f32 v, f64 *out) {
    out[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    out[1] = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
}

inline double first(f32 v) { return _mm512_cvtss_f32(v); }
inline double first(f64 v) { return _mm512_cvtsd_f64(v); }
inline double total(f64 v) {
    const __m256d a = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    const __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}
inline double largest(f32 v) { return _mm512_reduce_max_ps(v); }
inline double largest(f64 v) { return _mm512_reduce_max_pd(v); }

}  // namespace softxent::isa
