// The vocabulary of the kernels: a stretch of a row as one value, whatever the instruction set.
//
// Vec<S> holds 64 bytes' worth of lanes (16 float, 8 double) and Block<S> four times that, in as many registers as the
// instruction set needs. Every level runs the same operations on the same lanes in the same order, so where fused
// multiply-add exists the results are the same bits. One header per instruction set supplies a table of functions over
// single registers (namespace isa); everything here is built from that table and written once.
//
// Assumes round-to-nearest and -ffp-contract=off. Never allocates, throws, or touches memory beyond the lanes asked for.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "../job.hpp"
#include "halves.hpp"

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define SOFTXENT_INLINE __forceinline
#if defined(_M_X64)
#define SOFTXENT_PREFETCH(p) _mm_prefetch(p, _MM_HINT_T0)
#else
#define SOFTXENT_PREFETCH(p) static_cast<void>(p)
#endif
#else
#define SOFTXENT_INLINE inline __attribute__((always_inline))
// GCC drops a call that does nothing but prefetch, unless something volatile is in it.
#define SOFTXENT_PREFETCH(p) (__builtin_prefetch(p), [] { __asm__ volatile(""); }())
#endif

#if defined(SOFTXENT_AVX512)
#include "../isa/avx512.hpp"
#elif defined(SOFTXENT_AVX2)
#include "../isa/avx2.hpp"
#elif defined(SOFTXENT_NEON)
#include "../isa/neon.hpp"
#elif (defined(__x86_64__) || defined(_M_X64)) && !defined(SOFTXENT_SCALAR)
#include "../isa/sse2.hpp"
#else
#include "../isa/scalar.hpp"
#endif

namespace softxent {

template <class S> struct RegisterOf;
template <> struct RegisterOf<float> { using type = isa::f32; };
template <> struct RegisterOf<double> { using type = isa::f64; };
template <class S> using Register = typename RegisterOf<S>::type;

// f(0), ..., f(N - 1), each with a number that is known when it is compiled.
//
// GCC must not put a Pack in memory: it would copy it there in pieces, and later loads of whole registers wait for
// those. It does so if a loop goes over the registers, which is unrolled too late, or if a local Pack is const.
template <class F, int... I> SOFTXENT_INLINE void repeat_for(F f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F> SOFTXENT_INLINE void repeat(F f) { repeat_for(f, std::make_integer_sequence<int, N>()); }

// N registers of consecutive lanes.
template <class S, int N> struct Pack {
    static constexpr int width = static_cast<int>(sizeof(Register<S>) / sizeof(S));   // lanes of one register
    static constexpr int registers = N, lanes = N * width;
    Register<S> r[N];

    Pack() = default;
    SOFTXENT_INLINE explicit Pack(double x) {                  // x in every lane
        repeat<N>([&](auto i) { r[i] = isa::broadcast(static_cast<S>(x)); });
    }
};

template <class S> inline constexpr int registers_of_vec = 64 / static_cast<int>(sizeof(Register<S>));
template <class S> using Vec = Pack<S, registers_of_vec<S>>;
template <class S> using Block = Pack<S, 4 * registers_of_vec<S>>;
// Whether there are registers to keep a Block in while something else is done (measured).
template <class S> inline constexpr bool KEEPS_BLOCKS = registers_of_vec<S> == 1 && sizeof(S) < sizeof(double);

template <class S> using Lanes = Pack<S, 2 * registers_of_vec<S>>;      // as many rows as the narrow kernel takes at once

template <class S> constexpr std::ptrdiff_t vec_lanes(const S *) { return Vec<S>::lanes; }
template <class S> constexpr std::ptrdiff_t lanes_of(const S *) { return Lanes<S>::lanes; }

// How many elements from p on a cache line starts. line_start is the same for a row of n elements, but 0 if the row has no
// whole Block: `stream` takes a Block only where a cache line starts.
template <class S> SOFTXENT_INLINE std::ptrdiff_t to_line(const S *p) {
    const std::size_t past = reinterpret_cast<std::size_t>(p) % 64;
    return past == 0 ? 0 : static_cast<std::ptrdiff_t>((64 - past) / sizeof(S));
}
template <class S> SOFTXENT_INLINE std::ptrdiff_t line_start(const S *p, std::ptrdiff_t n) {
    return n < Block<S>::lanes ? 0 : to_line(p);
}

// f applied register by register.
template <class S, int N, class F, class... Packs>
SOFTXENT_INLINE Pack<S, N> map(F f, const Pack<S, N> &first, const Packs &...others) {
    Pack<S, N> out;
    repeat<N>([&](auto i) { out.r[i] = f(first.r[i], others.r[i]...); });
    return out;
}

// M of v's registers, from register I on.
template <int M, int I, class S, int N> SOFTXENT_INLINE Pack<S, M> registers_from(const Pack<S, N> &v) {
    Pack<S, M> out;
    repeat<M>([&](auto j) { out.r[j] = v.r[I + j]; });
    return out;
}

template <int I, class S, int M, int N> SOFTXENT_INLINE void set_registers(Pack<S, N> *v, const Pack<S, M> &from) {
    repeat<M>([&](auto j) { v->r[I + j] = from.r[j]; });
}
// f(first, how many) for a few of N registers at a time: no more chains of operations than a CPU has registers for.
template <int N, class F> SOFTXENT_INLINE void in_flight(F f) {
    constexpr int M = N < isa::IN_FLIGHT ? N : isa::IN_FLIGHT;
    repeat<N / M>([&](auto step) { f(std::integral_constant<int, step * M>(), std::integral_constant<int, M>()); });
}

template <class P, class S> SOFTXENT_INLINE P load_pack(const S *p) {
    P out;
    repeat<P::registers>([&](auto i) { out.r[i] = isa::load(p + P::width * i); });
    return out;
}
template <class S> SOFTXENT_INLINE Vec<S> load(const S *p) { return load_pack<Vec<S>>(p); }
template <class S> SOFTXENT_INLINE Lanes<S> load_lanes(const S *p) { return load_pack<Lanes<S>>(p); }
template <class S> SOFTXENT_INLINE Block<S> load_block(const S *p) { return load_pack<Block<S>>(p); }

// T may be another type than S, except that doubles are not stored as halves.
template <class T, class S, int N> SOFTXENT_INLINE void store(T *p, const Pack<S, N> &v) {
    repeat<N>([&](auto i) {
        T *at = p + i * Pack<S, N>::width;
        if constexpr (sizeof(T) > sizeof(S)) {
            isa::f64 halves[2];
            isa::widen(v.r[i], halves);
            isa::store(at, halves[0]);
            isa::store(at + Pack<S, N>::width / 2, halves[1]);
        } else if constexpr (sizeof(S) > sizeof(float)) {
            isa::store_rounded(at, v.r[i]);
        } else {
            isa::store(at, v.r[i]);
        }
    });
}

// A store past the caches, for memory that is not needed again soon; p is aligned to a register. fence_streams must be
// called before other threads read it.
template <class S, int N> SOFTXENT_INLINE void stream(S *p, const Pack<S, N> &v) {
    repeat<N>([&](auto i) { isa::stream(p + i * Pack<S, N>::width, v.r[i]); });
}
SOFTXENT_INLINE void fence_streams() { isa::fence_streams(); }

// Numbers of either type as doubles, and doubles rounded to either type.
template <class P, class S> SOFTXENT_INLINE P load_pack_as_double(const S *p) {
    P out;
    repeat<P::registers>([&](auto i) { out.r[i] = isa::load_as_double(p + P::width * i); });
    return out;
}
template <class S> SOFTXENT_INLINE Vec<double> load_as_double(const S *p) { return load_pack_as_double<Vec<double>>(p); }
template <class S, int N> SOFTXENT_INLINE auto as_double(const Pack<S, N> &v) {
    if constexpr (sizeof(S) == sizeof(double)) {
        return v;
    } else {
        Pack<double, 2 * N> out;
        repeat<N>([&](auto i) {
            Register<double> wide[2];
            isa::widen(v.r[i], wide);
            out.r[2 * i] = wide[0];
            out.r[2 * i + 1] = wide[1];
        });
        return out;
    }
}
template <class S> SOFTXENT_INLINE void store_as_double(double *p, const Lanes<S> &v) { store(p, as_double(v)); }

template <class P> using AsDouble = Pack<double, P::lanes / Pack<double, 1>::width>;
template <class S, int N> SOFTXENT_INLINE auto rounded(const Pack<double, N> &v) {
    if constexpr (sizeof(S) == sizeof(double)) {
        return v;
    } else {
        Pack<S, N / 2> out;
        repeat<N / 2>([&](auto i) { out.r[i] = isa::narrow(v.r[2 * i], v.r[2 * i + 1]); });
        return out;
    }
}
// Doubles for so many lanes that a CPU has registers for what becomes of them.
template <class S> using SomeDoubles = Pack<double, std::min(AsDouble<Lanes<S>>::registers, isa::IN_FLIGHT)>;

// n numbers copied past the caches, but for cache lines at the ends that other numbers share.
template <class S> void stream_row(const S *from, S *to, std::ptrdiff_t n) {
    std::ptrdiff_t i = std::min(to_line(to), n);
    std::copy_n(from, i, to);
    for (; i + Vec<S>::lanes <= n; i += Vec<S>::lanes) stream(to + i, load(from + i));
    std::copy_n(from + i, n - i, to + i);
}

// A number for each lane, from f(lane).
template <class P, class F> SOFTXENT_INLINE P each_lane(F f) {
    using S = decltype(f(0));
    P out;
    repeat<P::registers>([&](auto i) { out.r[i] = isa::each_lane<S>([&](int lane) { return f(i * P::width + lane); }); });
    return out;
}

// Ask for memory that is soon to be read or overwritten; any address will do.
SOFTXENT_INLINE void prefetch(const char *p, std::ptrdiff_t bytes) {
    for (std::ptrdiff_t i = 0; i < bytes; i += 64) SOFTXENT_PREFETCH(p + i);
}

// The memory of the narrow and the middle kernel, on the stack.
template <class S> struct alignas(64) Tile { S space[TILE_BYTES / sizeof(S)]; };

// Rows to columns and back. There are as many rows as a register has lanes; row i has n elements at at[i]. Column c is
// a register, whose lane i is element c of row i: at columns + c * stride, or column(c).
//
// Squares of as many columns as rows are transposed within the 128-bit quarters of the registers, then between them. (A
// quarter is what AVX-512 has four of, AVX2 two, and SSE2 and NEON one.) The other columns are done a quarter at a time,
// and the last quarter may overlap the one before. So a row that is shorter than a quarter must be followed by memory
// that may be read, or overwritten.
template <class S> constexpr std::ptrdiff_t in_quarter(const S *) { return 16 / sizeof(S); }

template <class R, int WIDTH, int IN_QUARTER> SOFTXENT_INLINE void transpose_square(R *r) {
    repeat<WIDTH / IN_QUARTER>([&](auto i) { isa::transpose_in_quarters(r + i * IN_QUARTER); });
    repeat<IN_QUARTER>([&](auto i) { isa::transpose_quarters<IN_QUARTER>(r + i); });
}

template <class S> SOFTXENT_INLINE void rows_to_columns(const S *const *at, std::ptrdiff_t n, S *columns, std::ptrdiff_t stride) {
    constexpr int width = Pack<S, 1>::width, quarter = 16 / sizeof(S);
    const std::ptrdiff_t kept = n < quarter ? n : quarter;
    std::ptrdiff_t c = 0;
    for (; c + width <= n; c += width) {
        Register<S> r[width];
        repeat<width>([&](auto i) { r[i] = isa::load(at[i] + c); });
        transpose_square<Register<S>, width, quarter>(r);
        repeat<width>([&](auto i) { isa::store(columns + (c + i) * stride, r[i]); });
    }
    for (; c < n; c += quarter) {
        if (c + kept > n) c = n - kept;
        Register<S> r[quarter];
        repeat<quarter>([&](auto i) { r[i] = isa::load_quarters<quarter>(at + i, c); });
        isa::transpose_in_quarters(r);
        for (int i = 0; i < kept; ++i) isa::store(columns + (c + i) * stride, r[i]);
    }
}
template <class S, class F> SOFTXENT_INLINE void columns_to_rows(F column, std::ptrdiff_t n, S *const *at) {
    constexpr int width = Pack<S, 1>::width, quarter = 16 / sizeof(S);
    const std::ptrdiff_t kept = n < quarter ? n : quarter;
    std::ptrdiff_t c = 0;
    for (; c + width <= n; c += width) {
        Register<S> r[width];
        repeat<width>([&](auto i) { r[i] = column(c + i); });
        transpose_square<Register<S>, width, quarter>(r);
        repeat<width>([&](auto i) { isa::store(at[i] + c, r[i]); });
    }
    for (; c < n; c += quarter) {
        if (c + kept > n) c = n - kept;
        Register<S> r[quarter];
        repeat<quarter>([&](auto i) { r[i] = column(c + (i < kept ? i : 0)); });
        isa::transpose_in_quarters(r);
        repeat<quarter>([&](auto i) { isa::store_quarters<quarter>(at + i, c, r[i]); });
    }
}

// Rows to columns and back, for as many rows as Lanes has lanes; a column is a Lanes.
template <class S> void rows_to_lanes(const S *const *at, std::ptrdiff_t n, S *tile) {
    for (int i = 0; i < Lanes<S>::lanes; i += Lanes<S>::width) rows_to_columns(at + i, n, tile + i, Lanes<S>::lanes);
}
// result(i, c, v) is what becomes of register i of column c, which is v in the tile.
template <class S, class F> SOFTXENT_INLINE void lanes_to_rows_of(const S *tile, std::ptrdiff_t n, S *const *at, F result) {
    repeat<Lanes<S>::registers>([&](auto i) {
        const S *columns = tile + i * Lanes<S>::width;
        columns_to_rows([&](std::ptrdiff_t c) {
            return result(i, c, load_pack<Pack<S, 1>>(columns + c * Lanes<S>::lanes)).r[0];
        }, n, at + i * Lanes<S>::width);
    });
}
template <class S> void lanes_to_rows(const S *tile, std::ptrdiff_t n, S *const *at) {
    lanes_to_rows_of(tile, n, at, [](auto, std::ptrdiff_t, auto column) { return column; });
}

// As rows_to_lanes and lanes_to_rows, for short rows that follow each other directly. `staging` is for groups with fewer rows than lanes; the other
// lanes hold zeros then.
template <class S> constexpr bool is_short(const S *, std::ptrdiff_t n) { return sizeof(S) < sizeof(double) && (n == 2 || n == 3); }

template <int N> SOFTXENT_INLINE void short_rows_to_lanes_of(const float *rows, float *tile) {
    for (int i = 0; i < Lanes<float>::lanes; i += Lanes<float>::width) {
        Register<float> r[N];
        isa::load_columns<N>(rows + i * N, r);
        for (int c = 0; c < N; ++c) isa::store(tile + c * Lanes<float>::lanes + i, r[c]);
    }
}
template <int N> SOFTXENT_INLINE void lanes_to_short_rows_of(const float *tile, float *rows) {
    for (int i = 0; i < Lanes<float>::lanes; i += Lanes<float>::width) {
        Register<float> r[N];
        for (int c = 0; c < N; ++c) r[c] = isa::load(tile + c * Lanes<float>::lanes + i);
        isa::store_columns<N>(rows + i * N, r);
    }
}
template <class S> void short_rows_to_lanes(const S *rows, std::ptrdiff_t n, std::ptrdiff_t count, S *tile, S *staging) {
    if constexpr (sizeof(S) < sizeof(double)) {
        if (count < Lanes<S>::lanes) {
            std::fill_n(std::copy_n(rows, count * n, staging), (Lanes<S>::lanes - count) * n, S(0));
            rows = staging;
        }
        n == 2 ? short_rows_to_lanes_of<2>(rows, tile) : short_rows_to_lanes_of<3>(rows, tile);
    }
}
template <class S> void lanes_to_short_rows(const S *tile, std::ptrdiff_t n, std::ptrdiff_t count, S *rows, S *staging) {
    if constexpr (sizeof(S) < sizeof(double)) {
        S *to = count < Lanes<S>::lanes ? staging : rows;
        n == 2 ? lanes_to_short_rows_of<2>(tile, to) : lanes_to_short_rows_of<3>(tile, to);
        if (to == staging) std::copy_n(staging, count * n, rows);
    }
}

// Columns to rows and back, for `count` rows, which start `pitch` elements apart. Columns start `stride` apart. The lanes of
// their last registers that belong to no row go to `spare`, or come from the first row.
template <class S>
void columns_to_panel(
    const S *columns, std::ptrdiff_t stride, std::ptrdiff_t n, S *rows, std::ptrdiff_t pitch, std::ptrdiff_t count, S *spare
) {
    constexpr int width = Pack<S, 1>::width;
    for (std::ptrdiff_t row = 0; row < count; row += width) {
        S *at[width];
        for (int i = 0; i < width; ++i) at[i] = row + i < count ? rows + (row + i) * pitch : spare;
        columns_to_rows([=](std::ptrdiff_t c) { return isa::load(columns + row + c * stride); }, n, at);
    }
}
template <class S>
void panel_to_columns(const S *rows, std::ptrdiff_t pitch, std::ptrdiff_t count, std::ptrdiff_t n, S *columns, std::ptrdiff_t stride) {
    constexpr int width = Pack<S, 1>::width;
    for (std::ptrdiff_t row = 0; row < count; row += width) {
        const S *at[width];
        for (int i = 0; i < width; ++i) at[i] = row + i < count ? rows + (row + i) * pitch : rows;
        rows_to_columns(at, n, columns + row, stride);
    }
}

// A row of halves as floats, or of floats as halves.
template <class From, class To> void convert_row(const From *from, To *to, std::ptrdiff_t n) {
    constexpr std::ptrdiff_t width = Pack<float, 1>::width;
    std::ptrdiff_t i = 0;
    for (; i + width <= n; i += width) isa::store(to + i, isa::load(from + i));
    if (i < n) {
        From rest[width] = {};
        To converted[width];
        std::memcpy(rest, from + i, static_cast<std::size_t>(n - i) * sizeof(From));
        isa::store(converted, isa::load(rest));
        std::memcpy(to + i, converted, static_cast<std::size_t>(n - i) * sizeof(To));
    }
}

// How many of the first n lanes lie in register i.
template <class P> SOFTXENT_INLINE int lanes_in(std::ptrdiff_t n, int i) {
    const int rest = static_cast<int>(n) - i * P::width;
    return rest < 0 ? 0 : rest > P::width ? P::width : rest;
}

// The first n lanes from memory, 0 < n <= lanes; the others hold `fill`, and their memory is not touched.
template <class P, class S> SOFTXENT_INLINE P load_pack_first(const S *p, std::ptrdiff_t n, double fill) {
    P out(fill);
    repeat<P::registers>([&](auto i) { out.r[i] = isa::load_first(p + i * P::width, lanes_in<P>(n, i), out.r[i]); });
    return out;
}
template <class S> SOFTXENT_INLINE Vec<S> load_first(const S *p, std::ptrdiff_t n, double fill) {
    return load_pack_first<Vec<S>>(p, n, fill);
}
template <class S> SOFTXENT_INLINE Lanes<S> load_lanes_first(const S *p, std::ptrdiff_t n, double fill) {
    return load_pack_first<Lanes<S>>(p, n, fill);
}
template <class T, class S, int N> SOFTXENT_INLINE void store_first(T *p, std::ptrdiff_t n, const Pack<S, N> &v) {
    using P = Pack<S, N>;
    if constexpr (sizeof(T) > sizeof(S) || sizeof(S) > std::max(sizeof(T), sizeof(float))) {
        T numbers[P::lanes];
        store(numbers, v);
        std::copy_n(numbers, n, p);
    } else {
        repeat<N>([&](auto i) { isa::store_first(p + i * P::width, lanes_in<P>(n, i), v.r[i]); });
    }
}

template <class S, int N> SOFTXENT_INLINE Pack<S, N> operator+(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::add(x, y); }, a, b);
}
template <class S, int N> SOFTXENT_INLINE Pack<S, N> operator-(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::sub(x, y); }, a, b);
}
template <class S, int N> SOFTXENT_INLINE Pack<S, N> operator*(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::mul(x, y); }, a, b);
}
template <class S, int N> SOFTXENT_INLINE Pack<S, N> operator/(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::div(x, y); }, a, b);
}
// a * b + c, rounded once where the level has a fused multiply-add.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> fma(const Pack<S, N> &a, const Pack<S, N> &b, const Pack<S, N> &c) {
    return map([](auto x, auto y, auto z) { return isa::fma(x, y, z); }, a, b, c);
}
// a * b + c, rounded once at every level. a * b must nearly cancel c: the result is what a rounding lost.
template <int N> SOFTXENT_INLINE Pack<double, N> exact_fma(const Pack<double, N> &a, const Pack<double, N> &b, const Pack<double, N> &c) {
    return map([](auto x, auto y, auto z) { return isa::exact_fma(x, y, z); }, a, b, c);
}
// The larger, or the smaller, of the two; b where either is NaN.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> maximum(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::maximum(x, y); }, a, b);
}
template <class S, int N> SOFTXENT_INLINE Pack<S, N> minimum(const Pack<S, N> &a, const Pack<S, N> &b) {
    return map([](auto x, auto y) { return isa::minimum(x, y); }, a, b);
}
// yes where a byte is not 0, else no, lane by lane.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> select_bytes(const unsigned char *bytes, const Pack<S, N> &yes, const Pack<S, N> &no) {
    Pack<S, N> out;
    repeat<N>([&](auto i) { out.r[i] = isa::select_bytes(bytes + i * Pack<S, N>::width, yes.r[i], no.r[i]); });
    return out;
}
// a == b ? yes : no, lane by lane.
template <class S, int N>
SOFTXENT_INLINE Pack<S, N> select_equal(const Pack<S, N> &a, const Pack<S, N> &b, const Pack<S, N> &yes, const Pack<S, N> &no) {
    return map([](auto x, auto y, auto u, auto v) { return isa::select_equal(x, y, u, v); }, a, b, yes, no);
}
// n + 1 where a > b, else n, lane by lane. The registers of n are used again for those of a that are more.
template <class S, int M, int N>
SOFTXENT_INLINE Pack<S, M> count_greater(const Pack<S, M> &n, const Pack<S, N> &a, const Pack<S, N> &b) {
    Pack<S, M> out = n;
    repeat<N>([&](auto i) { out.r[i % M] = isa::count_greater(out.r[i % M], a.r[i], b.r[i]); });
    return out;
}

// One bit per lane, set where a == b.
template <class S, int N> SOFTXENT_INLINE unsigned equal_bits(const Pack<S, N> &a, const Pack<S, N> &b) {
    unsigned bits = 0;
    repeat<N>([&](auto i) { bits |= isa::equal_bits(a.r[i], b.r[i]) << (i * Pack<S, N>::width); });
    return bits;
}
template <class S, int N> SOFTXENT_INLINE bool all_equal(const Pack<S, N> &a, const Pack<S, N> &b) {
    return equal_bits(a, b) == equal_bits(Pack<S, N>(0), Pack<S, N>(0));
}
SOFTXENT_INLINE int lowest_bit(unsigned bits) {
    const auto power = static_cast<float>(bits & (0u - bits));
    std::uint32_t representation;
    std::memcpy(&representation, &power, sizeof power);
    return static_cast<int>(representation >> 23) - 127;
}

// The first lane of v that is x, -1 for none.
template <class S, int N> SOFTXENT_INLINE int first_equal(const Pack<S, N> &v, double x) {
    constexpr int few = N < 16 / Pack<S, N>::width ? N : 16 / Pack<S, N>::width;        // registers with 16 lanes
    unsigned bits[N / few], any = 0;
    repeat<N / few>([&](auto i) { any |= bits[i] = equal_bits(registers_from<few, i * few>(v), Pack<S, few>(x)); });
    for (int i = 0; any != 0; ++i) {
        if (bits[i] != 0) return i * 16 + lowest_bit(bits[i]);
    }
    return -1;
}
// v with lane i set to 0; i may be no lane of v.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> without_lane(const Pack<S, N> &v, std::ptrdiff_t i) {
    using P = Pack<S, N>;
    static constexpr auto numbers = [] {
        struct { S lane[P::lanes]; } all{};
        for (int j = 0; j < P::lanes; ++j) all.lane[j] = static_cast<S>(j);
        return all;
    }();
    return select_equal(load_pack<P>(numbers.lane), P(static_cast<double>(i)), P(0), v);
}

// Lanes are combined as halves, i with i + n/2, until M registers are left: the same tree at every register width.
template <int M, class S, int N, class F> SOFTXENT_INLINE Pack<S, M> fold(const Pack<S, N> &v, F f) {
    if constexpr (N == M) {
        return v;
    } else {
        return fold<M>(map(f, registers_from<N / 2, 0>(v), registers_from<N / 2, N / 2>(v)), f);
    }
}
template <class S, int N> SOFTXENT_INLINE double lane0(const Pack<S, N> &v) { return isa::lane0(v.r[0]); }
template <class S, int N> SOFTXENT_INLINE double largest(const Pack<S, N> &v) {
    return isa::largest(fold<1>(v, [](auto a, auto b) { return isa::maximum(a, b); }).r[0]);
}
// A Block's lanes that lie a Vec apart, combined.
template <class S, int N> SOFTXENT_INLINE Vec<S> fold_sum(const Pack<S, N> &v) {
    return fold<registers_of_vec<S>>(v, [](auto a, auto b) { return isa::add(a, b); });
}
template <class S> SOFTXENT_INLINE Vec<S> fold_largest(const Block<S> &v) {
    return fold<registers_of_vec<S>>(v, [](auto a, auto b) { return isa::maximum(a, b); });
}
SOFTXENT_INLINE double total(const Vec<double> &v) {
    return isa::total(fold<1>(v, [](auto a, auto b) { return isa::add(a, b); }).r[0]);
}

// Division of many numbers by one, which is to multiply by its inverse as a sum of two. The error is at most 0.5000003 ulp, but
// up to one ulp of a quotient that is subnormal, or hardly larger than that: there the smaller product is subnormal.
template <class S> struct Divisor {
    S divisor, inverse, rest;

    SOFTXENT_INLINE explicit Divisor(double x) : divisor(static_cast<S>(x)), inverse(1 / divisor), rest(0) {
        if constexpr (isa::FUSED) {
            // Rounded down, so that the rest is above 0: its product with an infinity must not be NaN.
            constexpr S EPSILON = std::numeric_limits<S>::epsilon();
            if (std::fma(-inverse, divisor, S(1)) < 0) inverse -= inverse * (EPSILON / 2);
            rest = std::max(std::fma(-inverse, divisor, S(1)) / divisor, inverse * EPSILON * EPSILON);
        }
    }
    template <class P> SOFTXENT_INLINE P under(const P &v) const {
        if (isa::FUSED && rest >= std::numeric_limits<S>::min()) return fma(v, P(inverse), v * P(rest));
        return v / P(divisor);
    }
};

// The lanes of a float Vec as doubles.
struct Wide { Vec<double> low, high; };
SOFTXENT_INLINE Wide widen(const Vec<float> &v) {
    Pack<double, 2 * registers_of_vec<double>> wide;
    constexpr int half = registers_of_vec<double>;
    repeat<registers_of_vec<float>>([&](auto i) { isa::widen(v.r[i], wide.r + 2 * i); });
    return {registers_from<half, 0>(wide), registers_from<half, half>(wide)};
}

}  // namespace softxent
