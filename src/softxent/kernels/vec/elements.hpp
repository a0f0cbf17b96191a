// Elements of the dtypes that the vector kernels do not load directly: any number type, at any alignment, in either byte
// order, read as double (or, for class labels, as a 64-bit integer) and written back from double; and elements side by
// side, aligned and in the machine's byte order, read as the type computed in and written back from it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../job.hpp"
#include "vec.hpp"

namespace softxent {

// n numbers, `stride` bytes apart.
using Reader = void (*)(const char *, std::ptrdiff_t stride, std::ptrdiff_t n, double *to);
using Writer = void (*)(char *, double);
template <class S> using PackedReader = void (*)(const char *, S *, std::ptrdiff_t n);
template <class S> using PackedWriter = void (*)(char *, const S *, std::ptrdiff_t n);
// The good labels: those in [0, n_classes), and the label of rows that do not count, if `ignored` is not null.
struct LabelRange {
    std::int64_t n_classes;
    const std::int64_t *ignored;
};
// Whether n labels, `stride` bytes apart, are all good. If `to` is given, they are written there: -1 for a row that
// does not count, 0 for a label that is not good.
using LabelsReader = bool (*)(const char *, std::ptrdiff_t stride, std::ptrdiff_t n, const LabelRange &range, std::int64_t *to);

// NumPy's bool: a byte, and True unless it is 0.
struct Boolean {
    std::uint8_t byte;
    explicit operator double() const { return std::min<std::uint8_t>(byte, 1); }  // becomes vector code, unlike != 0
};

template <class T, bool SWAPPED> inline T load_element(const char *p) {
    T value;
    if constexpr (SWAPPED) {
        char bytes[sizeof(T)];
        for (std::size_t i = 0; i < sizeof(T); ++i) bytes[i] = p[sizeof(T) - 1 - i];
        std::memcpy(&value, bytes, sizeof(T));
    } else {
        std::memcpy(&value, p, sizeof(T));
    }
    return value;
}

template <class T, bool SWAPPED> void read_numbers(const char *p, std::ptrdiff_t stride, std::ptrdiff_t n, double *to) {
    const auto read = [=](std::ptrdiff_t step) {
        for (std::ptrdiff_t i = 0; i < n; ++i) to[i] = static_cast<double>(load_element<T, SWAPPED>(p + i * step));
    };
    constexpr std::ptrdiff_t side_by_side = sizeof(T);          // a loop of its own for what is usual
    stride == side_by_side ? read(side_by_side) : read(stride);
}

// Whole registers of halves are converted at once. For other types the compiler makes vector code.
template <class T, class S> constexpr bool is_half_of = std::is_same_v<S, float> && (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>);

template <class T, class S> void read_packed(const char *p, S *to, std::ptrdiff_t n) {
    const T *from = reinterpret_cast<const T *>(p);
    if constexpr (is_half_of<T, S>) {
        convert_row(from, to, n);
    } else {
        for (std::ptrdiff_t i = 0; i < n; ++i) to[i] = static_cast<S>(static_cast<double>(from[i]));
    }
}
template <class T, class S> void write_packed(char *p, const S *from, std::ptrdiff_t n) {
    T *to = reinterpret_cast<T *>(p);
    if constexpr (is_half_of<T, S>) {
        convert_row(from, to, n);
    } else {
        for (std::ptrdiff_t i = 0; i < n; ++i) to[i] = static_cast<T>(static_cast<double>(from[i]));
    }
}

template <class T, bool SWAPPED> void write_element(char *p, double x) {
    const T value = static_cast<T>(x);
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    for (std::size_t i = 0; i < sizeof(T); ++i) p[i] = bytes[SWAPPED ? sizeof(T) - 1 - i : i];
}

template <class T, bool SWAPPED>
bool read_labels(const char *p, std::ptrdiff_t stride, std::ptrdiff_t n, const LabelRange &range, std::int64_t *to) {
    const auto n_classes = static_cast<std::uint64_t>(range.n_classes);
    const bool ignores = range.ignored != nullptr && (std::is_signed_v<T> || *range.ignored >= 0);
    const std::uint64_t ignored = ignores ? static_cast<std::uint64_t>(*range.ignored) : 0;
    const auto read = [=](std::ptrdiff_t step, auto may_ignore) {
        std::uint64_t bad = 0;                                  // not a bool: this becomes vector code
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            // As unsigned numbers, negative labels are large, like unsigned ones beyond 2^63.
            const auto label = static_cast<std::uint64_t>(load_element<T, SWAPPED>(p + i * step));
            const bool good = label < n_classes, ignore = may_ignore && label == ignored;
            bad |= good || ignore ? 0 : 1;
            if (to) to[i] = ignore ? -1 : good ? static_cast<std::int64_t>(label) : 0;
        }
        return bad == 0;
    };
    // Loops of their own for what is usual.
    constexpr std::ptrdiff_t side_by_side = sizeof(T);
    if (ignores) return read(stride, std::true_type{});
    return stride == side_by_side ? read(side_by_side, std::false_type{}) : read(stride, std::false_type{});
}

// How the elements of one NumPy dtype are handled; a null entry means that the dtype cannot play that part.
struct Element {
    Reader read = nullptr;
    Writer write = nullptr;
    LabelsReader read_labels = nullptr;
    PackedReader<float> read_floats = nullptr;
    PackedReader<double> read_doubles = nullptr;
    PackedWriter<float> write_floats = nullptr;
    PackedWriter<double> write_doubles = nullptr;
};

template <class T, bool SWAPPED> constexpr Element read_only_element() {
    Element element;
    element.read = read_numbers<T, SWAPPED>;
    if constexpr (!SWAPPED) {
        element.read_floats = read_packed<T, float>;
        element.read_doubles = read_packed<T, double>;
    }
    return element;
}
template <class T, bool SWAPPED> constexpr Element integer_element() {
    Element element = read_only_element<T, SWAPPED>();
    element.read_labels = read_labels<T, SWAPPED>;
    return element;
}
template <class T, bool SWAPPED> constexpr Element real_element() {
    Element element = read_only_element<T, SWAPPED>();
    element.write = write_element<T, SWAPPED>;
    if constexpr (!SWAPPED) {
        element.write_floats = write_packed<T, float>;
        element.write_doubles = write_packed<T, double>;
    }
    return element;
}

// By ElementType, in its order.
template <bool SWAPPED> inline constexpr Element ELEMENTS[N_ELEMENT_TYPES] = {
    {},
    read_only_element<Boolean, SWAPPED>(),
    integer_element<std::int8_t, SWAPPED>(), integer_element<std::int16_t, SWAPPED>(),
    integer_element<std::int32_t, SWAPPED>(), integer_element<std::int64_t, SWAPPED>(),
    integer_element<std::uint8_t, SWAPPED>(), integer_element<std::uint16_t, SWAPPED>(),
    integer_element<std::uint32_t, SWAPPED>(), integer_element<std::uint64_t, SWAPPED>(),
    real_element<Half, SWAPPED>(), real_element<BFloat16, SWAPPED>(),
    real_element<float, SWAPPED>(), real_element<double, SWAPPED>(),
    read_only_element<long double, SWAPPED>(),
};
SOFTXENT_INLINE const Element &element_of(const Layout &layout) {
    return (layout.swapped ? ELEMENTS<true> : ELEMENTS<false>)[layout.element];
}

// n elements side by side, of a layout that is packed or stacked.
template <class S> SOFTXENT_INLINE void read_side_by_side(const Layout &layout, const char *p, S *to, std::ptrdiff_t n) {
    const Element &element = element_of(layout);
    if constexpr (std::is_same_v<S, float>) element.read_floats(p, to, n);
    else element.read_doubles(p, to, n);
}
template <class S> SOFTXENT_INLINE void write_side_by_side(const Layout &layout, char *p, const S *from, std::ptrdiff_t n) {
    const Element &element = element_of(layout);
    if constexpr (std::is_same_v<S, float>) element.write_floats(p, from, n);
    else element.write_doubles(p, from, n);
}

// Elements side by side that are converted as they are loaded or stored, a register at a time.
struct Converted {
    const Layout *layout = nullptr;
    char *data = nullptr;
};
// f of the elements from `start` on, of a layout that is `loadable`.
template <class S, class F> SOFTXENT_INLINE auto with_elements(const Converted &from, std::ptrdiff_t start, F f) {
    if constexpr (std::is_same_v<S, float>) {
        if (from.layout->element == FLOAT16) return f(reinterpret_cast<Half *>(from.data) + start);
        if (from.layout->element == BFLOAT16) return f(reinterpret_cast<BFloat16 *>(from.data) + start);
    }
    return f(reinterpret_cast<S *>(from.data) + start);
}

}  // namespace softxent
