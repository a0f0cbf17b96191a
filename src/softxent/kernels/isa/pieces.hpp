// The first n lanes of 256 bits, stored in pieces of 128, 64 and 32 bits. A masked store takes longer on AMD's CPUs.
#pragma once

#include <immintrin.h>

namespace softxent::isa {

inline void store_pieces(float *p, int n, __m256 v) {
    __m128 rest = _mm256_castps256_ps128(v);
    if ((n & 4) != 0) {
        _mm_storeu_ps(p, rest);
        rest = _mm256_extractf128_ps(v, 1);
        p += 4;
    }
    if ((n & 2) != 0) {
        _mm_storel_pi(reinterpret_cast<__m64 *>(p), rest);
        rest = _mm_movehl_ps(rest, rest);
        p += 2;
    }
    if ((n & 1) != 0) _mm_store_ss(p, rest);
}
inline void store_pieces(double *p, int n, __m256d v) {
    __m128d rest = _mm256_castpd256_pd128(v);
    if ((n & 2) != 0) {
        _mm_storeu_pd(p, rest);
        rest = _mm256_extractf128_pd(v, 1);
        p += 2;
    }
    if ((n & 1) != 0) _mm_store_sd(p, rest);
}

}  // namespace softxent::isa
