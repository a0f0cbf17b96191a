// Plain C++ for the architectures that have no header of their own: 128-bit registers as arrays, which the compiler may
// keep in vectors. No fused multiply-add is assumed: fma rounds twice. See vec.hpp for what each function means.
//
// On x86-64 sse2.hpp stands in for it; -DSOFTXENT_SCALAR chooses this one there too, so that it can be tested.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace softxent::isa {

template <class T> struct Array {
    static constexpr int lanes = 16 / sizeof(T);
    T lane[lanes];
};
using f32 = Array<float>;
using f64 = Array<double>;
constexpr int IN_FLIGHT = 4;                                   // registers that exp works on side by side
constexpr bool FUSED = false;                                  // fma rounds once

// A number for each lane, from f(lane).
template <class T, class F> SOFTXENT_INLINE Array<T> each_lane(F f) {
    Array<T> out;
    for (int i = 0; i < out.lanes; ++i) out.lane[i] = f(i);
    return out;
}

template <class T> SOFTXENT_INLINE Array<T> broadcast(T x) { return each_lane<T>([&](int) { return x; }); }
SOFTXENT_INLINE f32 load(const float *p) { return each_lane<float>([&](int i) { return p[i]; }); }
SOFTXENT_INLINE f64 load(const double *p) { return each_lane<double>([&](int i) { return p[i]; }); }
template <int F, int B> SOFTXENT_INLINE f32 load(const Small<F, B> *p) {
    return each_lane<float>([&](int i) { return static_cast<float>(static_cast<double>(p[i])); });
}
template <class T> SOFTXENT_INLINE Array<T> load_first(const T *p, int n, const Array<T> &fill) {
    return each_lane<T>([&](int i) { return i < n ? p[i] : fill.lane[i]; });
}
template <class T> SOFTXENT_INLINE void store_first(T *p, int n, const Array<T> &v) {
    for (int i = 0; i < n; ++i) p[i] = v.lane[i];
}
template <class T> SOFTXENT_INLINE void store(T *p, const Array<T> &v) { store_first(p, v.lanes, v); }
template <class T> SOFTXENT_INLINE void stream(T *p, const Array<T> &v) { store(p, v); }
inline void fence_streams() {}
template <int F, int B> SOFTXENT_INLINE void store(Small<F, B> *p, const f32 &v) {
    for (int i = 0; i < v.lanes; ++i) p[i] = Small<F, B>(static_cast<double>(v.lane[i]));
}

template <class T> SOFTXENT_INLINE Array<T> add(const Array<T> &a, const Array<T> &b) {
    return each_lane<T>([&](int i) { return a.lane[i] + b.lane[i]; });
}
template <class T> SOFTXENT_INLINE Array<T> sub(const Array<T> &a, const Array<T> &b) {
    return each_lane<T>([&](int i) { return a.lane[i] - b.lane[i]; });
}
template <class T> SOFTXENT_INLINE Array<T> mul(const Array<T> &a, const Array<T> &b) {
    return each_lane<T>([&](int i) { return a.lane[i] * b.lane[i]; });
}
template <class T> SOFTXENT_INLINE Array<T> div(const Array<T> &a, const Array<T> &b) {
    return each_lane<T>([&](int i) { return a.lane[i] / b.lane[i]; });
}
template <class T> SOFTXENT_INLINE Array<T> fma(const Array<T> &a, const Array<T> &b, const Array<T> &c) {
    return add(mul(a, b), c);
}
inline f64 exact_fma(const f64 &a, const f64 &b, const f64 &c) {    // may be a library call
    return each_lane<double>([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
template <class T> SOFTXENT_INLINE Array<T> maximum(const Array<T> &a, const Array<T> &b) {
    return each_lane<T>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
template <class T> SOFTXENT_INLINE Array<T> minimum(const Array<T> &a, const Array<T> &b) {
    return each_lane<T>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}

template <class T> SOFTXENT_INLINE unsigned equal_bits(const Array<T> &a, const Array<T> &b) {
    unsigned bits = 0;
    for (int i = 0; i < a.lanes; ++i) bits |= static_cast<unsigned>(a.lane[i] == b.lane[i]) << i;
    return bits;
}
template <class T>
SOFTXENT_INLINE Array<T> select_equal(const Array<T> &a, const Array<T> &b, const Array<T> &yes, const Array<T> &no) {
    return each_lane<T>([&](int i) { return a.lane[i] == b.lane[i] ? yes.lane[i] : no.lane[i]; });
}
template <class T> SOFTXENT_INLINE Array<T> count_greater(const Array<T> &n, const Array<T> &a, const Array<T> &b) {
    return each_lane<T>([&](int i) { return n.lane[i] + (a.lane[i] > b.lane[i] ? 1 : 0); });
}
template <class T> SOFTXENT_INLINE Array<T> select_bytes(const unsigned char *p, const Array<T> &yes, const Array<T> &no) {
    return each_lane<T>([&](int i) { return p[i] != 0 ? yes.lane[i] : no.lane[i]; });
}

// The low bits of the representation moved up to where the exponent is.
template <class Bits, class T> SOFTXENT_INLINE Array<T> shift_left(const Array<T> &v, int by) {
    Bits bits[Array<T>::lanes];
    std::memcpy(bits, v.lane, sizeof bits);
    for (Bits &b : bits) b <<= by;
    Array<T> out;
    std::memcpy(out.lane, bits, sizeof bits);
    return out;
}
SOFTXENT_INLINE f32 shift_to_exponent(const f32 &v) { return shift_left<std::uint32_t>(v, 23); }
SOFTXENT_INLINE f64 shift_to_exponent(const f64 &v) { return shift_left<std::uint64_t>(v, 52); }

// floor(log2 v) of a positive, normal v; any number for NaN.
SOFTXENT_INLINE f64 exponent(const f64 &v) {
    std::uint64_t bits[f64::lanes];
    std::memcpy(bits, v.lane, sizeof bits);
    return each_lane<double>([&](int i) { return static_cast<double>(static_cast<int>(bits[i] >> 52) - 1023); });
}

SOFTXENT_INLINE void widen(const f32 &v, f64 *out) {
    for (int i = 0; i < v.lanes; ++i) out[i / 2].lane[i % 2] = v.lane[i];
}
SOFTXENT_INLINE f32 narrow(const f64 &low, const f64 &high) {
    return each_lane<float>([&](int i) { return static_cast<float>((i < 2 ? low : high).lane[i % 2]); });
}

template <class T> SOFTXENT_INLINE f64 load_as_double(const T *p) {
    return each_lane<double>([&](int i) { return p[i]; });
}
template <class T> SOFTXENT_INLINE void store_rounded(T *p, const f64 &v) {
    for (int i = 0; i < v.lanes; ++i) p[i] = static_cast<T>(v.lane[i]);
}

// A register is one 128-bit quarter of a Vec: there is one row to load or store, and nothing between quarters to transpose.
template <int, class T> SOFTXENT_INLINE Array<T> load_quarters(const T *const *at, std::ptrdiff_t j) { return load(at[0] + j); }
template <int, class T> SOFTXENT_INLINE void store_quarters(T *const *at, std::ptrdiff_t j, const Array<T> &v) { store(at[0] + j, v); }
template <class T> SOFTXENT_INLINE void transpose_in_quarters(Array<T> *r) {
    for (int row = 1; row < r->lanes; ++row) {
        for (int i = 0; i < row; ++i) {
            const T above = r[i].lane[row];
            r[i].lane[row] = r[row].lane[i];
            r[row].lane[i] = above;
        }
    }
}
template <int, class T> SOFTXENT_INLINE void transpose_quarters(Array<T> *) {}

// The columns of rows of N numbers, one row after the other.
template <int N> SOFTXENT_INLINE void load_columns(const float *p, f32 *r) {
    for (int c = 0; c < N; ++c) r[c] = each_lane<float>([&](int i) { return p[i * N + c]; });
}
template <int N> SOFTXENT_INLINE void store_columns(float *p, const f32 *r) {
    for (int k = 0; k < N * f32::lanes; ++k) p[k] = r[k % N].lane[k / N];
}

template <class T> SOFTXENT_INLINE double lane0(const Array<T> &v) { return v.lane[0]; }
SOFTXENT_INLINE double total(const f64 &v) { return v.lane[0] + v.lane[1]; }
template <class T> SOFTXENT_INLINE double largest(Array<T> v) {
    for (int n = v.lanes / 2; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) v.lane[i] = v.lane[i] > v.lane[i + n] ? v.lane[i] : v.lane[i + n];
    return v.lane[0];
}

}  // namespace softxent::isa

#include "tail_of_halves.hpp"
