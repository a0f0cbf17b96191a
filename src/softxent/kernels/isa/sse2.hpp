// SSE2, which every x86-64 CPU has: four 128-bit registers to a Vec. There is no fused multiply-add: fma rounds twice.
// See vec.hpp for what each function means.
#pragma once

#include <emmintrin.h>

#include <cstdint>
#include <cstring>

namespace softxent::isa {

using f32 = __m128;
using f64 = __m128d;
constexpr int IN_FLIGHT = 4;                                   // registers that exp works on side by side
constexpr bool FUSED = false;                                  // fma rounds once

inline f32 broadcast(float x) { return _mm_set1_ps(x); }
inline f64 broadcast(double x) { return _mm_set1_pd(x); }
inline f32 load(const float *p) { return _mm_loadu_ps(p); }
inline f64 load(const double *p) { return _mm_loadu_pd(p); }
inline void store(float *p, f32 v) { _mm_storeu_ps(p, v); }
inline void store(double *p, f64 v) { _mm_storeu_pd(p, v); }
inline void stream(float *p, f32 v) { _mm_stream_ps(p, v); }
inline void stream(double *p, f64 v) { _mm_stream_pd(p, v); }
inline void fence_streams() { _mm_sfence(); }

// A number for each lane, from f(lane).
template <class T, class F> SOFTXENT_INLINE auto each_lane(F f) {
    if constexpr (sizeof(T) == sizeof(float)) return _mm_setr_ps(f(0), f(1), f(2), f(3));
    else return _mm_setr_pd(f(0), f(1));
}

// 64 bits from or to memory, in the lower half of a register.
inline __m128i load_low(const void *p) { return _mm_loadl_epi64(static_cast<const __m128i *>(p)); }
inline void store_low(void *p, __m128i v) { _mm_storel_epi64(static_cast<__m128i *>(p), v); }
inline __m128i select(__m128i mask, __m128i yes, __m128i no) {
    return _mm_or_si128(_mm_and_si128(mask, yes), _mm_andnot_si128(mask, no));
}

// Moved to the place of a float's, exponent and fraction need another bias, once more for infinity and NaN. A subnormal
// gets the exponent of the smallest normal number, which is then taken off. (Taking off 0 makes a NaN quiet.)
inline f32 load(const Half *p) {
    const __m128i bias = _mm_set1_epi32(112 << 23), smallest = _mm_set1_epi32(113 << 23);
    const __m128i bits = _mm_unpacklo_epi16(load_low(p), _mm_setzero_si128());
    const __m128i size = _mm_and_si128(bits, _mm_set1_epi32(0x7fff));
    const __m128i special = _mm_cmpgt_epi32(size, _mm_set1_epi32(0x7bff)), subnormal = _mm_cmpgt_epi32(_mm_set1_epi32(0x400), size);
    const __m128i biases = select(subnormal, smallest, _mm_add_epi32(bias, _mm_and_si128(special, bias)));
    const f32 moved = _mm_castsi128_ps(_mm_add_epi32(_mm_slli_epi32(size, 13), biases));
    const f32 sign = _mm_castsi128_ps(_mm_slli_epi32(_mm_xor_si128(bits, size), 16));
    return _mm_or_ps(_mm_sub_ps(moved, _mm_castsi128_ps(_mm_and_si128(subnormal, smallest))), sign);
}
// Adding 2^13 times the power of two at or below a number, and the smallest normal one at least, rounds it to the units of
// a half's last place, which are then the low bits. They carry into the exponent, and from the largest number to infinity.
inline void store(Half *p, f32 v) {
    const __m128i bits = _mm_castps_si128(v);
    const f32 size = _mm_min_ps(_mm_castsi128_ps(_mm_and_si128(bits, _mm_set1_epi32(0x7fffffff))), _mm_set1_ps(0x1p16f));
    const f32 power = _mm_max_ps(_mm_and_ps(size, _mm_castsi128_ps(_mm_set1_epi32(0x7f800000))), _mm_set1_ps(0x1p-14f));
    const f32 rounder = _mm_mul_ps(power, _mm_set1_ps(0x1p13f));
    const __m128i units = _mm_sub_epi32(_mm_castps_si128(_mm_add_ps(size, rounder)), _mm_castps_si128(rounder));
    const __m128i number = _mm_add_epi32(units, _mm_sub_epi32(_mm_srli_epi32(_mm_castps_si128(power), 13), _mm_set1_epi32(113 << 10)));
    const __m128i quiet = _mm_or_si128(_mm_and_si128(_mm_srli_epi32(bits, 13), _mm_set1_epi32(0x3ff)), _mm_set1_epi32(0x200));
    const __m128i nan = _mm_and_si128(_mm_castps_si128(_mm_cmpunord_ps(v, v)), quiet);
    const __m128i sign = _mm_slli_epi32(_mm_srai_epi32(bits, 31), 15);
    const __m128i all = _mm_or_si128(_mm_or_si128(number, nan), sign);
    store_low(p, _mm_packs_epi32(all, all));
}
inline f32 load(const BFloat16 *p) { return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), load_low(p))); }
// Half a unit less a bit, and the bit that makes a tie even, carry into the upper 16 bits; a NaN is only made quiet.
inline void store(BFloat16 *p, f32 v) {
    const __m128i bits = _mm_castps_si128(v), odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    const __m128i rounded = _mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7fff)), odd);
    const __m128i quiet = _mm_or_si128(bits, _mm_set1_epi32(0x400000));
    const __m128i upper = _mm_srai_epi32(select(_mm_castps_si128(_mm_cmpunord_ps(v, v)), quiet, rounded), 16);
    store_low(p, _mm_packs_epi32(upper, upper));
}

inline f32 load_first(const float *p, int n, f32 fill) {
    switch (n) {
    case 0: return fill;
    case 1: return _mm_move_ss(fill, _mm_load_ss(p));
    case 2: return _mm_shuffle_ps(_mm_castsi128_ps(load_low(p)), fill, _MM_SHUFFLE(3, 2, 1, 0));
    case 3: return _mm_shuffle_ps(_mm_castsi128_ps(load_low(p)), _mm_move_ss(fill, _mm_load_ss(p + 2)), _MM_SHUFFLE(3, 0, 1, 0));
    default: return load(p);
    }
}
inline f64 load_first(const double *p, int n, f64 fill) {
    switch (n) {
    case 0: return fill;
    case 1: return _mm_move_sd(fill, _mm_load_sd(p));
    default: return load(p);
    }
}
inline void store_first(float *p, int n, f32 v) {
    if (n == 4) return store(p, v);
    if (n & 2) store_low(p, _mm_castps_si128(v));
    if (n & 1) _mm_store_ss(p + n - 1, n == 3 ? _mm_movehl_ps(v, v) : v);
}
inline void store_first(double *p, int n, f64 v) {
    if (n == 2) return store(p, v);
    if (n == 1) _mm_store_sd(p, v);
}

inline f32 add(f32 a, f32 b) { return _mm_add_ps(a, b); }
inline f64 add(f64 a, f64 b) { return _mm_add_pd(a, b); }
inline f32 sub(f32 a, f32 b) { return _mm_sub_ps(a, b); }
inline f64 sub(f64 a, f64 b) { return _mm_sub_pd(a, b); }
inline f32 mul(f32 a, f32 b) { return _mm_mul_ps(a, b); }
inline f64 mul(f64 a, f64 b) { return _mm_mul_pd(a, b); }
inline f32 div(f32 a, f32 b) { return _mm_div_ps(a, b); }
inline f64 div(f64 a, f64 b) { return _mm_div_pd(a, b); }
inline f32 fma(f32 a, f32 b, f32 c) { return add(mul(a, b), c); }
inline f64 fma(f64 a, f64 b, f64 c) { return add(mul(a, b), c); }
// What a product rounds off follows from the products of the factors' upper and lower 26 bits, none of which is rounded,
// and next to c, which the product all but cancels, nothing else is. (Where std::fma is no instruction but a subroutine, it
// takes longer than all else of a short row.)
inline f64 upper_bits(f64 v) {                                 // rounded, so that the others have a sign for a 27th
    const __m128i rounded = _mm_add_epi64(_mm_castpd_si128(v), _mm_set1_epi64x(1 << 26));
    return _mm_castsi128_pd(_mm_and_si128(rounded, _mm_set1_epi64x(~((1LL << 27) - 1))));
}
inline f64 exact_fma(f64 a, f64 b, f64 c) {
    const f64 a_upper = upper_bits(a), a_lower = sub(a, a_upper), b_upper = upper_bits(b), b_lower = sub(b, b_upper);
    const f64 product = mul(a, b);
    const f64 rest = sub(sub(sub(product, mul(a_upper, b_upper)), mul(a_lower, b_upper)), mul(a_upper, b_lower));
    return add(add(product, c), sub(mul(a_lower, b_lower), rest));
}
inline f32 maximum(f32 a, f32 b) { return _mm_max_ps(a, b); }
inline f32 minimum(f32 a, f32 b) { return _mm_min_ps(a, b); }
inline f64 maximum(f64 a, f64 b) { return _mm_max_pd(a, b); }
inline f64 minimum(f64 a, f64 b) { return _mm_min_pd(a, b); }

inline f32 equal(f32 a, f32 b) { return _mm_cmpeq_ps(a, b); }
inline f64 equal(f64 a, f64 b) { return _mm_cmpeq_pd(a, b); }
inline unsigned equal_bits(f32 a, f32 b) { return static_cast<unsigned>(_mm_movemask_ps(equal(a, b))); }
inline unsigned equal_bits(f64 a, f64 b) { return static_cast<unsigned>(_mm_movemask_pd(equal(a, b))); }
inline f32 select_equal(f32 a, f32 b, f32 yes, f32 no) {
    const f32 mask = equal(a, b);
    return _mm_or_ps(_mm_and_ps(mask, yes), _mm_andnot_ps(mask, no));
}
inline f64 select_equal(f64 a, f64 b, f64 yes, f64 no) {
    const f64 mask = equal(a, b);
    return _mm_or_pd(_mm_and_pd(mask, yes), _mm_andnot_pd(mask, no));
}
inline f32 count_greater(f32 n, f32 a, f32 b) { return add(n, _mm_and_ps(_mm_cmpgt_ps(a, b), _mm_set1_ps(1))); }
inline f64 count_greater(f64 n, f64 a, f64 b) { return add(n, _mm_and_pd(_mm_cmpgt_pd(a, b), _mm_set1_pd(1))); }
// All ones in the 32-bit lanes of those of the first sizeof(T) bytes that are 0.
template <class T> inline __m128i zero_bytes(const unsigned char *p) {
    T bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    const __m128i zero = _mm_setzero_si128(), words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(bytes), zero);
    return _mm_cmpeq_epi32(_mm_unpacklo_epi16(words, zero), zero);
}
inline f32 select_bytes(const unsigned char *p, f32 yes, f32 no) {
    return _mm_castsi128_ps(select(zero_bytes<std::int32_t>(p), _mm_castps_si128(no), _mm_castps_si128(yes)));
}
inline f64 select_bytes(const unsigned char *p, f64 yes, f64 no) {
    const __m128i zeros = zero_bytes<std::int16_t>(p);
    return _mm_castsi128_pd(select(_mm_unpacklo_epi32(zeros, zeros), _mm_castpd_si128(no), _mm_castpd_si128(yes)));
}

// The low bits of the representation moved up to where the exponent is.
inline f32 shift_to_exponent(f32 v) { return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(v), 23)); }
inline f64 shift_to_exponent(f64 v) { return _mm_castsi128_pd(_mm_slli_epi64(_mm_castpd_si128(v), 52)); }

// floor(log2 v) of a positive, normal v; any number for NaN. The exponent field is read as the low bits of 2^52 + field.
inline f64 exponent(f64 v) {
    const __m128i field = _mm_srli_epi64(_mm_castpd_si128(v), 52);
    return _mm_sub_pd(_mm_or_pd(_mm_castsi128_pd(field), _mm_set1_pd(0x1p52)), _mm_set1_pd(0x1p52 + 1023));
}

inline void widen(f32 v, f64 *out) {
    out[0] = _mm_cvtps_pd(v);
    out[1] = _mm_cvtps_pd(_mm_movehl_ps(v, v));
}
inline f32 narrow(f64 low, f64 high) { return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high)); }

inline f64 load_as_double(const float *p) { return _mm_cvtps_pd(_mm_castsi128_ps(load_low(p))); }
inline f64 load_as_double(const double *p) { return load(p); }
inline void store_rounded(float *p, f64 v) { store_low(p, _mm_castps_si128(_mm_cvtpd_ps(v))); }
inline void store_rounded(double *p, f64 v) { store(p, v); }

// A register is one 128-bit quarter of a Vec: there is one row to load or store, and nothing between quarters to transpose.
template <int> inline f32 load_quarters(const float *const *at, std::ptrdiff_t j) { return load(at[0] + j); }
template <int> inline f64 load_quarters(const double *const *at, std::ptrdiff_t j) { return load(at[0] + j); }
template <int> inline void store_quarters(float *const *at, std::ptrdiff_t j, f32 v) { store(at[0] + j, v); }
template <int> inline void store_quarters(double *const *at, std::ptrdiff_t j, f64 v) { store(at[0] + j, v); }
inline void transpose_in_quarters(f32 *r) {
    const f32 a = _mm_unpacklo_ps(r[0], r[1]), b = _mm_unpacklo_ps(r[2], r[3]);
    const f32 c = _mm_unpackhi_ps(r[0], r[1]), d = _mm_unpackhi_ps(r[2], r[3]);
    r[0] = _mm_movelh_ps(a, b);
    r[1] = _mm_movehl_ps(b, a);
    r[2] = _mm_movelh_ps(c, d);
    r[3] = _mm_movehl_ps(d, c);
}
inline void transpose_in_quarters(f64 *r) {
    const f64 a = r[0], b = r[1];
    r[0] = _mm_unpacklo_pd(a, b);
    r[1] = _mm_unpackhi_pd(a, b);
}
template <int> inline void transpose_quarters(f32 *) {}
template <int> inline void transpose_quarters(f64 *) {}

// The columns of rows of N numbers, one row after the other; N is 2 or 3.
template <int N> inline void load_columns(const float *p, f32 *r) {
    const f32 a = load(p), b = load(p + 4);
    if constexpr (N == 2) {
        r[0] = _mm_shuffle_ps(a, b, 0x88);
        r[1] = _mm_shuffle_ps(a, b, 0xdd);
    } else {
        const f32 c = load(p + 8);
        r[0] = _mm_shuffle_ps(a, _mm_shuffle_ps(b, c, 0x12), 0x8c);
        r[1] = _mm_shuffle_ps(_mm_shuffle_ps(a, b, 0x01), _mm_shuffle_ps(b, c, 0x23), 0x88);
        r[2] = _mm_shuffle_ps(_mm_shuffle_ps(a, b, 0x12), c, 0xc8);
    }
}
template <int N> inline void store_columns(float *p, const f32 *r) {
    const f32 a = _mm_unpacklo_ps(r[0], r[1]), b = _mm_unpackhi_ps(r[0], r[1]);
    if constexpr (N == 2) {
        store(p, a);
        store(p + 4, b);
    } else {
        store(p, _mm_shuffle_ps(a, _mm_shuffle_ps(r[2], a, 0x20), 0x84));
        store(p + 4, _mm_shuffle_ps(_mm_shuffle_ps(a, r[2], 0x13), b, 0x48));
        store(p + 8, _mm_shuffle_ps(_mm_shuffle_ps(r[2], b, 0x22), _mm_shuffle_ps(b, r[2], 0x33), 0x88));
    }
}

inline double lane0(f32 v) { return _mm_cvtss_f32(v); }
inline double lane0(f64 v) { return _mm_cvtsd_f64(v); }
inline double total(f64 v) { return _mm_cvtsd_f64(_mm_add_sd(v, _mm_unpackhi_pd(v, v))); }
inline double largest(f32 v) {
    const f32 a = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
}
inline double largest(f64 v) { return _mm_cvtsd_f64(_mm_max_sd(v, _mm_unpackhi_pd(v, v))); }

}  // namespace softxent::isa

#include "tail_of_halves.hpp"
