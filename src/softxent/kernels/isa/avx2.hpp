// AVX2, FMA and F16C: two 256-bit registers to a Vec. See vec.hpp for what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "pieces.hpp"

namespace softxent::isa {

using f32 = __m256;
using f64 = __m256d;
constexpr int IN_FLIGHT = 4;                                   // registers that exp works on side by side
constexpr bool FUSED = true;                                   // fma rounds once

inline f32 broadcast(float x) { return _mm256_set1_ps(x); }
inline f64 broadcast(double x) { return _mm256_set1_pd(x); }
inline f32 load(const float *p) { return _mm256_loadu_ps(p); }
inline f64 load(const double *p) { return _mm256_loadu_pd(p); }
inline void store(float *p, f32 v) { _mm256_storeu_ps(p, v); }
inline void store(double *p, f64 v) { _mm256_storeu_pd(p, v); }
inline void stream(float *p, f32 v) { _mm256_stream_ps(p, v); }
inline void stream(double *p, f64 v) { _mm256_stream_pd(p, v); }
inline void fence_streams() { _mm_sfence(); }

// A number for each lane, from f(lane). Faster than the gathers of most CPUs.
template <class T, class F> SOFTXENT_INLINE auto each_lane(F f) {
    if constexpr (sizeof(T) == sizeof(float)) return _mm256_setr_ps(f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7));
    else return _mm256_setr_pd(f(0), f(1), f(2), f(3));
}

inline f32 load(const Half *p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
inline void store(Half *p, f32 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline f32 load(const BFloat16 *p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
// Half a unit less a bit, and the bit that makes a tie even, carry into the upper 16 bits; a NaN is only made quiet.
inline void store(BFloat16 *p, f32 v) {
    const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1)));
}

// All ones in the first n lanes: a window that slides over this table.
alignas(32) constexpr std::int32_t LANES_ON[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
inline __m256i mask8(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(LANES_ON + 8 - n)); }
inline __m256i mask4(int n) { return mask8(2 * n); }
inline f32 load_first(const float *p, int n, f32 fill) {
    if (n == 8) return load(p);
    if (n == 0) return fill;
    return _mm256_blendv_ps(fill, _mm256_maskload_ps(p, mask8(n)), _mm256_castsi256_ps(mask8(n)));
}
inline f64 load_first(const double *p, int n, f64 fill) {
    if (n == 4) return load(p);
    if (n == 0) return fill;
    return _mm256_blendv_pd(fill, _mm256_maskload_pd(p, mask4(n)), _mm256_castsi256_pd(mask4(n)));
}
inline void store_first(float *p, int n, f32 v) { n == 8 ? store(p, v) : store_pieces(p, n, v); }
inline void store_first(double *p, int n, f64 v) { n == 4 ? store(p, v) : store_pieces(p, n, v); }

inline f32 add(f32 a, f32 b) { return _mm256_add_ps(a, b); }
inline f64 add(f64 a, f64 b) { return _mm256_add_pd(a, b); }
inline f32 sub(f32 a, f32 b) { return _mm256_sub_ps(a, b); }
inline f64 sub(f64 a, f64 b) { return _mm256_sub_pd(a, b); }
inline f32 mul(f32 a, f32 b) { return _mm256_mul_ps(a, b); }
inline f64 mul(f64 a, f64 b) { return _mm256_mul_pd(a, b); }
inline f32 div(f32 a, f32 b) { return _mm256_div_ps(a, b); }
inline f64 div(f64 a, f64 b) { return _mm256_div_pd(a, b); }
inline f32 fma(f32 a, f32 b, f32 c) { return _mm256_fmadd_ps(a, b, c); }
inline f64 fma(f64 a, f64 b, f64 c) { return _mm256_fmadd_pd(a, b, c); }
inline f64 exact_fma(f64 a, f64 b, f64 c) { return fma(a, b, c); }
inline f32 maximum(f32 a, f32 b) { return _mm256_max_ps(a, b); }
inline f32 minimum(f32 a, f32 b) { return _mm256_min_ps(a, b); }
inline f64 maximum(f64 a, f64 b) { return _mm256_max_pd(a, b); }
inline f64 minimum(f64 a, f64 b) { return _mm256_min_pd(a, b); }

inline f32 equal(f32 a, f32 b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
inline f64 equal(f64 a, f64 b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
inline unsigned equal_bits(f32 a, f32 b) { return static_cast<unsigned>(_mm256_movemask_ps(equal(a, b))); }
inline unsigned equal_bits(f64 a, f64 b) { return static_cast<unsigned>(_mm256_movemask_pd(equal(a, b))); }
inline f32 select_equal(f32 a, f32 b, f32 yes, f32 no) { return _mm256_blendv_ps(no, yes, equal(a, b)); }
inline f64 select_equal(f64 a, f64 b, f64 yes, f64 no) { return _mm256_blendv_pd(no, yes, equal(a, b)); }
inline f32 count_greater(f32 n, f32 a, f32 b) { return add(n, _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), _mm256_set1_ps(1))); }
inline f64 count_greater(f64 n, f64 a, f64 b) { return add(n, _mm256_and_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ), _mm256_set1_pd(1))); }
inline f32 select_bytes(const unsigned char *p, f32 yes, f32 no) {
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
    return _mm256_blendv_ps(yes, no, _mm256_castsi256_ps(_mm256_cmpeq_epi32(lanes, _mm256_setzero_si256())));
}
inline f64 select_bytes(const unsigned char *p, f64 yes, f64 no) {
    std::int32_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    const __m256i lanes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
    return _mm256_blendv_pd(yes, no, _mm256_castsi256_pd(_mm256_cmpeq_epi64(lanes, _mm256_setzero_si256())));
}

// The low bits of the representation moved up to where the exponent is.
inline f32 shift_to_exponent(f32 v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23)); }
inline f64 shift_to_exponent(f64 v) { return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(v), 52)); }

// floor(log2 v) of a positive, normal v; any number for NaN. The exponent field is read as the low bits of 2^52 + field.
inline f64 exponent(f64 v) {
    const __m256d two52 = _mm256_set1_pd(0x1p52);
    const __m256i field = _mm256_srli_epi64(_mm256_castpd_si256(v), 52);
    return _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(field), two52), _mm256_set1_pd(0x1p52 + 1023));
}

inline void widen(f32 v, f64 *out) {
    out[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
    out[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
}
inline f32 narrow(f64 low, f64 high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low)), _mm256_cvtpd_ps(high), 1);
}

inline f64 load_as_double(const float *p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline f64 load_as_double(const double *p) { return load(p); }
inline void store_rounded(float *p, f64 v) { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }
inline void store_rounded(double *p, f64 v) { store(p, v); }

// 128 bits from or to each of the rows 0 and BY.
template <int BY> inline f32 load_quarters(const float *const *at, std::ptrdiff_t j) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at[0] + j)), _mm_loadu_ps(at[BY] + j), 1);
}
template <int BY> inline f64 load_quarters(const double *const *at, std::ptrdiff_t j) {
    return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(at[0] + j)), _mm_loadu_pd(at[BY] + j), 1);
}
template <int BY> inline void store_quarters(float *const *at, std::ptrdiff_t j, f32 v) {
    _mm_storeu_ps(at[0] + j, _mm256_castps256_ps128(v));
    _mm_storeu_ps(at[BY] + j, _mm256_extractf128_ps(v, 1));
}
template <int BY> inline void store_quarters(double *const *at, std::ptrdiff_t j, f64 v) {
    _mm_storeu_pd(at[0] + j, _mm256_castpd256_pd128(v));
    _mm_storeu_pd(at[BY] + j, _mm256_extractf128_pd(v, 1));
}
inline void transpose_in_quarters(f32 *r) {
    const f32 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpacklo_ps(r[2], r[3]);
    const f32 c = _mm256_unpackhi_ps(r[0], r[1]), d = _mm256_unpackhi_ps(r[2], r[3]);
    r[0] = _mm256_shuffle_ps(a, b, 0x44);
    r[1] = _mm256_shuffle_ps(a, b, 0xee);
    r[2] = _mm256_shuffle_ps(c, d, 0x44);
    r[3] = _mm256_shuffle_ps(c, d, 0xee);
}
inline void transpose_in_quarters(f64 *r) {
    const f64 a = r[0], b = r[1];
    r[0] = _mm256_unpacklo_pd(a, b);
    r[1] = _mm256_unpackhi_pd(a, b);
}
// The halves of two registers, BY apart.
template <int BY> inline void transpose_quarters(f32 *r) {
    const f32 a = r[0], b = r[BY];
    r[0] = _mm256_permute2f128_ps(a, b, 0x20);
    r[BY] = _mm256_permute2f128_ps(a, b, 0x31);
}
template <int BY> inline void transpose_quarters(f64 *r) {
    const f64 a = r[0], b = r[BY];
    r[0] = _mm256_permute2f128_pd(a, b, 0x20);
    r[BY] = _mm256_permute2f128_pd(a, b, 0x31);
}

// The columns of rows of N numbers, one row after the other; N is 2 or 3. Of 3 columns, each has its numbers in other
// lanes of the three registers, so that they can be blended first.
constexpr int lanes_of_column(int k, int c) {
    int lanes = 0;
    for (int i = 0; i < 8; ++i) lanes |= (8 * k + i) % 3 == c ? 1 << i : 0;
    return lanes;
}
template <int ONE, int TWO> inline f32 blend_thirds(const f32 *r) { return _mm256_blend_ps(_mm256_blend_ps(r[0], r[1], ONE), r[2], TWO); }
template <int C> inline f32 blend_column(const f32 *r) { return blend_thirds<lanes_of_column(1, C), lanes_of_column(2, C)>(r); }
template <int K> inline f32 blend_columns(const f32 *r) { return blend_thirds<lanes_of_column(K, 1), lanes_of_column(K, 2)>(r); }
template <int N> inline void load_columns(const float *p, f32 *r) {
    if constexpr (N == 2) {
        const f32 a = load(p), b = load(p + 8);
        r[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
        r[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
    } else {
        const f32 from[3] = {load(p), load(p + 8), load(p + 16)};
        r[0] = _mm256_permutevar8x32_ps(blend_column<0>(from), _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5));
        r[1] = _mm256_permutevar8x32_ps(blend_column<1>(from), _mm256_setr_epi32(1, 4, 7, 2, 5, 0, 3, 6));
        r[2] = _mm256_permutevar8x32_ps(blend_column<2>(from), _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7));
    }
}
template <int N> inline void store_columns(float *p, const f32 *r) {
    if constexpr (N == 2) {
        const f32 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
        store(p, _mm256_permute2f128_ps(a, b, 0x20));
        store(p + 8, _mm256_permute2f128_ps(a, b, 0x31));
    } else {
        const f32 from[3] = {
            _mm256_permutevar8x32_ps(r[0], _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5)),
            _mm256_permutevar8x32_ps(r[1], _mm256_setr_epi32(5, 0, 3, 6, 1, 4, 7, 2)),
            _mm256_permutevar8x32_ps(r[2], _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7))};
        store(p, blend_columns<0>(from));
        store(p + 8, blend_columns<1>(from));
        store(p + 16, blend_columns<2>(from));
    }
}

inline double lane0(f32 v) { return _mm256_cvtss_f32(v); }
inline double lane0(f64 v) { return _mm256_cvtsd_f64(v); }
inline double total(f64 v) {
    const __m128d a = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(a, _mm_unpackhi_pd(a, a)));
}
inline double largest(f32 v) {
    const __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
inline double largest(f64 v) {
    const __m128d a = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_max_sd(a, _mm_unpackhi_pd(a, a)));
}

}  // namespace softxent::isa

#include "tail_of_halves.hpp"
