// AVX-512 (F, BW, CD, DQ, VL): one 512-bit register holds a whole Vec. See vec.hpp for what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "pieces.hpp"

namespace softxent::isa {

using f32 = __m512;
using f64 = __m512d;
constexpr int IN_FLIGHT = 4;                                   // registers that exp works on side by side
constexpr bool FUSED = true;                                   // fma rounds once

inline f32 broadcast(float x) { return _mm512_set1_ps(x); }
inline f64 broadcast(double x) { return _mm512_set1_pd(x); }
inline f32 load(const float *p) { return _mm512_loadu_ps(p); }
inline f64 load(const double *p) { return _mm512_loadu_pd(p); }
inline void store(float *p, f32 v) { _mm512_storeu_ps(p, v); }
inline void store(double *p, f64 v) { _mm512_storeu_pd(p, v); }
inline void stream(float *p, f32 v) { _mm512_stream_ps(p, v); }
inline void stream(double *p, f64 v) { _mm512_stream_pd(p, v); }
inline void fence_streams() { _mm_sfence(); }

// A number for each lane, from f(lane). Faster than the gathers of most CPUs.
template <class T, class F> SOFTXENT_INLINE auto each_lane(F f) {
    if constexpr (sizeof(T) == sizeof(float)) return _mm512_setr_ps(f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15));
    else return _mm512_setr_pd(f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7));
}

inline f32 widen(const Half *, __m256i halves) { return _mm512_cvtph_ps(halves); }
inline f32 widen(const BFloat16 *, __m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline __m256i narrow(const Half *, f32 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// Half a unit less a bit, and the bit that makes a tie even, carry into the upper 16 bits; a NaN is only made quiet.
inline __m256i narrow(const BFloat16 *, f32 v) {
    const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i chosen = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}
template <class H> inline f32 load(const H *p) { return widen(p, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
template <class H> inline void store(H *p, f32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), narrow(p, v)); }

inline __mmask16 mask16(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline __mmask8 mask8(int n) { return static_cast<__mmask8>((1u << n) - 1); }
template <class H> inline f32 load_first(const H *p, int n, f32 fill) {
    return _mm512_mask_blend_ps(mask16(n), fill, widen(p, _mm256_maskz_loadu_epi16(mask16(n), p)));
}
template <class H> inline void store_first(H *p, int n, f32 v) { _mm256_mask_storeu_epi16(p, mask16(n), narrow(p, v)); }
inline f32 load_first(const float *p, int n, f32 fill) { return _mm512_mask_loadu_ps(fill, mask16(n), p); }
inline f64 load_first(const double *p, int n, f64 fill) { return _mm512_mask_loadu_pd(fill, mask8(n), p); }
inline void store_first(float *p, int n, f32 v) {
    if (n == 16) return store(p, v);
    if ((n & 8) != 0) _mm256_storeu_ps(p, _mm512_castps512_ps256(v));
    store_pieces(p + (n & 8), n & 7, (n & 8) != 0 ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v));
}
inline void store_first(double *p, int n, f64 v) {
    if (n == 8) return store(p, v);
    if ((n & 4) != 0) _mm256_storeu_pd(p, _mm512_castpd512_pd256(v));
    store_pieces(p + (n & 4), n & 3, (n & 4) != 0 ? _mm512_extractf64x4_pd(v, 1) : _mm512_castpd512_pd256(v));
}

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
inline f32 minimum(f32 a, f32 b) { return _mm512_min_ps(a, b); }
inline f64 maximum(f64 a, f64 b) { return _mm512_max_pd(a, b); }
inline f64 minimum(f64 a, f64 b) { return _mm512_min_pd(a, b); }

inline unsigned equal_bits(f32 a, f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline unsigned equal_bits(f64 a, f64 b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
inline f32 select_equal(f32 a, f32 b, f32 yes, f32 no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), no, yes); }
inline f64 select_equal(f64 a, f64 b, f64 yes, f64 no) { return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), no, yes); }
inline f32 count_greater(f32 n, f32 a, f32 b) { return _mm512_mask_add_ps(n, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), n, _mm512_set1_ps(1)); }
inline f64 count_greater(f64 n, f64 a, f64 b) { return _mm512_mask_add_pd(n, _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ), n, _mm512_set1_pd(1)); }
inline f32 select_bytes(const unsigned char *p, f32 yes, f32 no) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm512_mask_blend_ps(_mm_test_epi8_mask(bytes, bytes), no, yes);
}
inline f64 select_bytes(const unsigned char *p, f64 yes, f64 no) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    return _mm512_mask_blend_pd(static_cast<__mmask8>(_mm_test_epi8_mask(bytes, bytes)), no, yes);
}

// The low bits of the representation moved up to where the exponent is.
inline f32 shift_to_exponent(f32 v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23)); }
inline f64 shift_to_exponent(f64 v) { return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(v), 52)); }

// floor(log2 v) of a positive, normal v; NaN for NaN.
inline f64 exponent(f64 v) { return _mm512_getexp_pd(v); }

inline void widen(f32 v, f64 *out) {
    out[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    out[1] = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
}
inline f32 narrow(f64 low, f64 high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}

inline f64 load_as_double(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
inline f64 load_as_double(const double *p) { return load(p); }
inline void store_rounded(float *p, f64 v) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
inline void store_rounded(double *p, f64 v) { store(p, v); }

// 128 bits from or to each of the rows 0, BY, 2 BY and 3 BY.
template <int BY> inline f32 load_quarters(const float *const *at, std::ptrdiff_t j) {
    const f32 v = _mm512_castps128_ps512(_mm_loadu_ps(at[0] + j)), w = _mm512_insertf32x4(v, _mm_loadu_ps(at[BY] + j), 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(w, _mm_loadu_ps(at[2 * BY] + j), 2), _mm_loadu_ps(at[3 * BY] + j), 3);
}
template <int BY> inline f64 load_quarters(const double *const *at, std::ptrdiff_t j) {
    const f64 v = _mm512_castpd128_pd512(_mm_loadu_pd(at[0] + j)), w = _mm512_insertf64x2(v, _mm_loadu_pd(at[BY] + j), 1);
    return _mm512_insertf64x2(_mm512_insertf64x2(w, _mm_loadu_pd(at[2 * BY] + j), 2), _mm_loadu_pd(at[3 * BY] + j), 3);
}
template <int BY> inline void store_quarters(float *const *at, std::ptrdiff_t j, f32 v) {
    _mm_storeu_ps(at[0] + j, _mm512_castps512_ps128(v));
    _mm_storeu_ps(at[BY] + j, _mm512_extractf32x4_ps(v, 1));
    _mm_storeu_ps(at[2 * BY] + j, _mm512_extractf32x4_ps(v, 2));
    _mm_storeu_ps(at[3 * BY] + j, _mm512_extractf32x4_ps(v, 3));
}
template <int BY> inline void store_quarters(double *const *at, std::ptrdiff_t j, f64 v) {
    _mm_storeu_pd(at[0] + j, _mm512_castpd512_pd128(v));
    _mm_storeu_pd(at[BY] + j, _mm512_extractf64x2_pd(v, 1));
    _mm_storeu_pd(at[2 * BY] + j, _mm512_extractf64x2_pd(v, 2));
    _mm_storeu_pd(at[3 * BY] + j, _mm512_extractf64x2_pd(v, 3));
}
inline void transpose_in_quarters(f32 *r) {
    const f32 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpacklo_ps(r[2], r[3]);
    const f32 c = _mm512_unpackhi_ps(r[0], r[1]), d = _mm512_unpackhi_ps(r[2], r[3]);
    r[0] = _mm512_shuffle_ps(a, b, 0x44);
    r[1] = _mm512_shuffle_ps(a, b, 0xee);
    r[2] = _mm512_shuffle_ps(c, d, 0x44);
    r[3] = _mm512_shuffle_ps(c, d, 0xee);
}
inline void transpose_in_quarters(f64 *r) {
    const f64 a = r[0], b = r[1];
    r[0] = _mm512_unpacklo_pd(a, b);
    r[1] = _mm512_unpackhi_pd(a, b);
}
// The quarters of four registers, BY apart.
template <int BY> inline void transpose_quarters(f32 *r) {
    const f32 a = _mm512_shuffle_f32x4(r[0], r[BY], 0x44), b = _mm512_shuffle_f32x4(r[2 * BY], r[3 * BY], 0x44);
    const f32 c = _mm512_shuffle_f32x4(r[0], r[BY], 0xee), d = _mm512_shuffle_f32x4(r[2 * BY], r[3 * BY], 0xee);
    r[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    r[BY] = _mm512_shuffle_f32x4(a, b, 0xdd);
    r[2 * BY] = _mm512_shuffle_f32x4(c, d, 0x88);
    r[3 * BY] = _mm512_shuffle_f32x4(c, d, 0xdd);
}
template <int BY> inline void transpose_quarters(f64 *r) {
    f32 all[3 * BY + 1];
    for (int i = 0; i < 4 * BY; i += BY) all[i] = _mm512_castpd_ps(r[i]);
    transpose_quarters<BY>(all);
    for (int i = 0; i < 4 * BY; i += BY) r[i] = _mm512_castps_pd(all[i]);
}

// N registers of numbers in order to as many that take every N-th, and back. Table k says what becomes of register k
// of the result: lane i gets number at[k][j][i] of what the registers before the j-th gave (from 16 on: of the j-th).
template <int N, bool BACK> struct Places {
    std::int32_t at[N][N][16] = {};
    constexpr Places() {
        for (int k = 0; k < N; ++k)
            for (int j = 1; j < N; ++j)
                for (int i = 0; i < 16; ++i) {
                    const int number = BACK ? 16 * k + i : N * i + k, lane = BACK ? number / N : number % 16;
                    const int in = BACK ? number % N : number / 16;
                    at[k][j][i] = in == j ? 16 + lane : in == 0 && j == 1 ? lane : i;
                }
    }
};
template <int N, bool BACK> inline void deal(f32 *r) {
    static constexpr Places<N, BACK> places;
    f32 from[N];
    for (int k = 0; k < N; ++k) from[k] = r[k];
    for (int k = 0; k < N; ++k) {
        r[k] = from[0];
        for (int j = 1; j < N; ++j) r[k] = _mm512_permutex2var_ps(r[k], _mm512_loadu_si512(places.at[k][j]), from[j]);
    }
}
// The columns of rows of N numbers, one row after the other.
template <int N> inline void load_columns(const float *p, f32 *r) {
    for (int k = 0; k < N; ++k) r[k] = load(p + 16 * k);
    deal<N, false>(r);
}
template <int N> inline void store_columns(float *p, f32 *r) {
    deal<N, true>(r);
    for (int k = 0; k < N; ++k) store(p + 16 * k, r[k]);
}

inline double lane0(f32 v) { return _mm512_cvtss_f32(v); }
inline double lane0(f64 v) { return _mm512_cvtsd_f64(v); }
inline double total(f64 v) {
    const __m256d a = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    const __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}
inline double largest(f32 v) { return _mm512_reduce_max_ps(v); }
inline double largest(f64 v) { return _mm512_reduce_max_pd(v); }

}  // namespace softxent::isa
