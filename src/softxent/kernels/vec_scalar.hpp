// Plain C++ for any CPU of any architecture: a whole Vec as an array that the compiler may vectorise. No fused
// multiply-add is assumed: fma rounds twice. See vec.hpp for what each function means.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace softxent::isa {

template <class T, int N> struct Lanes { T lane[N]; };
using f32 = Lanes<float, 16>;
using f64 = Lanes<double, 8>;
constexpr int IN_FLIGHT = 1;                                   // registers that exp works on side by side

template <class T, int N, class F> SOFTXENT_INLINE Lanes<T, N> fill_lanes(F f) {
    Lanes<T, N> out;
    for (int i = 0; i < N; ++i) out.lane[i] = f(i);
    return out;
}

SOFTXENT_INLINE f32 broadcast(float x) { return fill_lanes<float, 16>([&](int) { return x; }); }
SOFTXENT_INLINE f64 broadcast(double x) { return fill_lanes<double, 8>([&](int) { return x; }); }
SOFTXENT_INLINE f32 load(const float *p) { return fill_lanes<float, 16>([&](int i) { return p[i]; }); }
SOFTXENT_INLINE f64 load(const double *p) { return fill_lanes<double, 8>([&](int i) { return p[i]; }); }

template <int F, int B> SOFTXENT_INLINE f32 load(const Small<F, B> *p) {
    return fill_lanes<float, 16>([&](int i) { return static_cast<float>(static_cast<double>(p[i])); });
}
template <int F, int B> SOFTXENT_INLINE void store(Small<F, B> *p, const f32 &v) {
    for (int i = 0; i < 16; ++i) p[i] = Small<F, B>(static_cast<double>(v.lane[i]));
}

template <class T, int N> SOFTXENT_INLINE void store_first(T *p, int n, const Lanes<T, N> &v) {
    for (int i = 0; i < n; ++i) p[i] = v.lane[i];
}
template <class T, int N> SOFTXENT_INLINE void store(T *p, const Lanes<T, N> &v) { store_first(p, N, v); }
template <class T, int N> SOFTXENT_INLINE Lanes<T, N> load_first(const T *p, int n, Lanes<T, N> out) {
    for (int i = 0; i < n; ++i) out.lane[i] = p[i];
    return out;
}

template <class T, int N> SOFTXENT_INLINE Lanes<T, N> add(const Lanes<T, N> &a, const Lanes<T, N> &b) {
    return fill_lanes<T, N>([&](int i) { return a.lane[i] + b.lane[i]; });
}
template <class T, int N> SOFTXENT_INLINE Lanes<T, N> sub(const Lanes<T, N> &a, const Lanes<T, N> &b) {
    return fill_lanes<T, N>([&](int i) { return a.lane[i] - b.lane[i]; });
}
template <class T, int N> SOFTXENT_INLINE Lanes<T, N> mul(const Lanes<T, N> &a, const Lanes<T, N> &b) {
    return fill_lanes<T, N>([&](int i) { return a.lane[i] * b.lane[i]; });
}
template <class T, int N> SOFTXENT_INLINE Lanes<T, N> div(const Lanes<T, N> &a, const Lanes<T, N> &b) {
    return fill_lanes<T, N>([&](int i) { return a.lane[i] / b.lane[i]; });
}
template <class T, int N> SOFTXENT_INLINE Lanes<T, N> fma(const Lanes<T, N> &a, const Lanes<T, N> &b, const Lanes<T, N> &c) {
    return fill_lanes<T, N>([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline f64 exact_fma(const f64 &a, const f64 &b, const f64 &c) {    // a library call, for the few that matter
    return fill_lanes<double, 8>([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
template <class T, int N> SOFTXENT_INLINE Lanes<T, N> maximum(const Lanes<T, N> &a, const Lanes<T, N> &b) {
    return fill_lanes<T, N>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
template <class T, int N>
SOFTXENT_INLINE Lanes<T, N> select_equal(const Lanes<T, N> &a, const Lanes<T, N> &b, const Lanes<T, N> &yes, const Lanes<T, N> &no) {
    return fill_lanes<T, N>([&](int i) { return a.lane[i] == b.lane[i] ? yes.lane[i] : no.lane[i]; });
}
template <class T, int N> SOFTXENT_INLINE unsigned equal_bits(const Lanes<T, N> &a, const Lanes<T, N> &b) {
    unsigned bits = 0;
    for (int i = 0; i < N; ++i) bits |= static_cast<unsigned>(a.lane[i] == b.lane[i]) << i;
    return bits;
}

// The low bits of the representation moved up to where the exponent is.
template <class Bits, class T, int N> SOFTXENT_INLINE Lanes<T, N> shift_left(const Lanes<T, N> &v, int by) {
    Bits bits[N];
    std::memcpy(bits, v.lane, sizeof bits);
    for (Bits &b : bits) b <<= by;
    Lanes<T, N> out;
    std::memcpy(out.lane, bits, sizeof bits);
    return out;
}
SOFTXENT_INLINE f32 shift_to_exponent(const f32 &v) { return shift_left<std::uint32_t>(v, 23); }
SOFTXENT_INLINE f64 shift_to_exponent(const f64 &v) { return shift_left<std::uint64_t>(v, 52); }

// floor(log2 v) of a positive, normal v; any number for NaN.
SOFTXENT_INLINE f64 exponent(const f64 &v) {
    std::uint64_t bits[8];
    std::memcpy(bits, v.lane, sizeof bits);
    return fill_lanes<double, 8>([&](int i) { return static_cast<double>(static_cast<int>(bits[i] >> 52) - 1023); });
}

SOFTXENT_INLINE void widen(const f32 &v, f64 *out) {
    for (int i = 0; i < 16; ++i) out[i / 8].lane[i % 8] = v.lane[i];
}

template <class T, int N> SOFTXENT_INLINE double first(const Lanes<T, N> &v) { return v.lane[0]; }
SOFTXENT_INLINE double total(f64 v) {
    for (int n = 4; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) v.lane[i] += v.lane[i + n];
    return v.lane[0];
}
template <class T, int N> SOFTXENT_INLINE double largest(Lanes<T, N> v) {
    for (int n = N / 2; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) v.lane[i] = v.lane[i] > v.lane[i + n] ? v.lane[i] : v.lane[i + n];
    return v.lane[0];
}

}  // namespace softxent::isa
