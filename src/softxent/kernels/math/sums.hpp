// Sums that keep what their additions round off.
//
// D is a double, or a Pack with the numbers of several rows in its lanes. The operations and their order are the same,
// and so are the bits.
#pragma once

#include "../vec/vec.hpp"

namespace softxent {

SOFTXENT_INLINE float maximum(float a, float b) { return a > b ? a : b; }
SOFTXENT_INLINE double maximum(double a, double b) { return a > b ? a : b; }
SOFTXENT_INLINE float select_equal(float a, float b, float yes, float no) { return a == b ? yes : no; }
SOFTXENT_INLINE double select_equal(double a, double b, double yes, double no) { return a == b ? yes : no; }
SOFTXENT_INLINE double exact_fma(double a, double b, double c) {
    using P = Pack<double, 1>;
    return lane0(exact_fma(P(a), P(b), P(c)));
}

// What the addition sum = a + b rounded off (Knuth's two-sum).
template <class T> SOFTXENT_INLINE T rounded_off(const T &a, const T &b, const T &sum) {
    T of_b = sum - a;
    return (a - (sum - of_b)) + (b - of_b);
}

// Numbers of either type as they are added up.
SOFTXENT_INLINE Wide load_wide(const float *p) { return {load_as_double(p), load_as_double(p + Vec<double>::lanes)}; }
SOFTXENT_INLINE Vec<double> load_wide(const double *p) { return load(p); }
SOFTXENT_INLINE Wide wide(const Vec<float> &v) { return widen(v); }
SOFTXENT_INLINE Vec<double> wide(const Vec<double> &v) { return v; }

// m - x; if LOOKS_FOR_0, 0 where t is 0, whatever x is.
template <bool LOOKS_FOR_0, class D> SOFTXENT_INLINE D gap(const D &t, const D &x, const D &m) {
    D zero(0), difference = m - x;
    if constexpr (LOOKS_FOR_0) return select_equal(t, zero, zero, difference);
    return difference;
}

// A sum, and what its additions rounded off.
template <class D> struct Carried {
    D sum, lost;
    Carried() = default;
    SOFTXENT_INLINE Carried(const D &a, const D &b) : sum(a), lost(b) {}
    SOFTXENT_INLINE void add(const D &v) {
        D next = sum + v;
        lost = lost + rounded_off(sum, v, next);
        sum = next;
    }
    // The sum minus taken_off; `rounded` gets what the result rounds off.
    SOFTXENT_INLINE D minus(const D &taken_off, D *rounded) const {
        D rest = sum - taken_off, zero(0), low = lost + rounded_off(sum, zero - taken_off, rest);
        D result = rest + low, finite = rest - rest;     // NaN if `rest` is not finite: then it is the result
        *rounded = select_equal(finite, zero, rounded_off(rest, low, result), zero);
        return select_equal(finite, zero, result, rest);
    }
};
SOFTXENT_INLINE Carried<double> operator*(const Carried<double> &a, double power_of_two) {
    return {a.sum * power_of_two, a.lost * power_of_two};
}
template <class D> SOFTXENT_INLINE Carried<D> operator+(const Carried<D> &a, const Carried<D> &b) {
    D sum = a.sum + b.sum;
    return {sum, (a.lost + b.lost) + rounded_off(a.sum, b.sum, sum)};
}
SOFTXENT_INLINE Wide operator+(const Wide &a, const Wide &b) { return {a.low + b.low, a.high + b.high}; }

// leaf(0) + ... + leaf(LEAVES - 1), where all from `count` on are 0. Halves are added, i to i + LEAVES / 2, until one
// is left: the order in which `total` adds lanes.
template <int LEAVES, int N = 1, class F> SOFTXENT_INLINE auto tree_sum(F leaf, int count, int i = 0) {
    if constexpr (N == LEAVES) {
        return leaf(i);
    } else {
        auto sum = tree_sum<LEAVES, 2 * N>(leaf, count, i);
        if (i + N < count) sum = sum + tree_sum<LEAVES, 2 * N>(leaf, count, i + N);
        return sum;
    }
}

// A sum for each lane, whose error does not grow with the number of terms.
template <class S> struct Sum;

// float numbers are added in double.
template <> struct Sum<float> {
    static constexpr int lanes = Vec<float>::lanes;
    Wide sum{Vec<double>(0), Vec<double>(0)};
    Sum() = default;
    SOFTXENT_INLINE explicit Sum(const Vec<float> &first) : sum(widen(first)) {}
    SOFTXENT_INLINE void add(const Wide &v) { sum = sum + v; }
    SOFTXENT_INLINE void add(const Vec<float> &v) { add(widen(v)); }
    template <bool LOOKS_FOR_0> SOFTXENT_INLINE void add_gaps(const Wide &t, const Wide &x, const Wide &m) {
        sum.low = fma(t.low, gap<LOOKS_FOR_0>(t.low, x.low, m.low), sum.low);
        sum.high = fma(t.high, gap<LOOKS_FOR_0>(t.high, x.high, m.high), sum.high);
    }
    // The sum of all lanes. What that rounds off is far below the errors of float exponentials.
    SOFTXENT_INLINE Carried<double> value() const { return {total(sum.low + sum.high), 0}; }
    // `value` minus taken_off, for several rows at once, one to a lane. slots[i] has lane i of the Sum of each row.
    // Slots from `count` on are 0.
    SOFTXENT_INLINE static void values_minus(const Wide *slots, int count, const float *taken_off, double *values, double *rounded) {
        Wide sum = tree_sum<lanes>([=](int i) { return slots[i]; }, count), off = widen(load(taken_off));
        store(values, sum.low - off.low);
        store(values + lanes / 2, sum.high - off.high);
        store(rounded, Vec<double>(0));
        store(rounded + lanes / 2, Vec<double>(0));
    }
};

// double numbers: each lane keeps what its additions round off, and so does the sum of the lanes.
template <> struct Sum<double> {
    static constexpr int lanes = Vec<double>::lanes;
    Carried<Vec<double>> sum{Vec<double>(0), Vec<double>(0)};
    Sum() = default;
    SOFTXENT_INLINE explicit Sum(const Vec<double> &first) : sum(first, Vec<double>(0)) {}
    SOFTXENT_INLINE void add(const Vec<double> &v) {
        Vec<double> next = sum.sum + v;
        sum = {next, sum.lost + rounded_off(sum.sum, v, next)};
    }
    template <bool LOOKS_FOR_0> SOFTXENT_INLINE void add_gaps(const Vec<double> &t, const Vec<double> &x, const Vec<double> &m) {
        add(t * gap<LOOKS_FOR_0>(t, x, m));
    }
    SOFTXENT_INLINE Carried<double> value() const {
        double sums[lanes], lost[lanes];
        store(sums, sum.sum);
        store(lost, sum.lost);
        return tree_sum<lanes>([&](int i) { return Carried<double>{sums[i], lost[i]}; }, lanes);
    }
    SOFTXENT_INLINE static void values_minus(
        const Carried<Vec<double>> *slots, int count, const double *taken_off, double *values, double *rounded
    ) {
        Vec<double> low;
        store(values, tree_sum<lanes>([=](int i) { return slots[i]; }, count).minus(load(taken_off), &low));
        store(rounded, low);
    }
};

SOFTXENT_INLINE bool is_finite(double x) { return x - x == 0; }
// Whether all lanes are so far below the largest number that a few thousand like them can be added up.
SOFTXENT_INLINE bool has_room(const Sum<double> &sum) {
    Vec<double> v = sum.sum.sum * Vec<double>(0x1p20);
    return all_equal(v - v, Vec<double>(0));
}

}  // namespace softxent
