// The numbers that the loss of a row is made of, and the losses of several rows at once.
#pragma once

#include <cstdint>
#include <limits>

#include "../math/log1p.hpp"

namespace softxent {

// If the gaps m - x of a row do not fit into a double, they are multiplied by FAR_STEP^2, which is small enough for any
// temperature. It is removed in two steps, since its inverse is not finite.
inline constexpr double FAR_STEP = 0x1p-512;
// A divisor whose size is below this or above its inverse is held as a Scale, with an exponent of its own.
inline constexpr double LEAST_DIVISOR = 0x1p-1000;

// What the diagnostics of a row are made of, besides m, m_shifted and n0 of RowNumbers. Only filled in if they are asked for.
struct alignas(64) RowDiagnostics {
    static constexpr int rows = 64;
    double R[rows], R_low[rows];                               // of the exponentials but that at `argmax`
    double label_gap[rows], mean_gap[rows];                    // m - x at the label, and on average over the probabilities
    std::int64_t argmax[rows], rank[rows];                     // -1 if a logit is NaN
};
// What the loss of a row is made of: weight * (mass * log1p((R + R_low) / e_m) + cross + unit * z_loss * lse^2), with
// e_m = unit_size * exp(m_shifted - n0 ln 2) and lse = m + log1p((R + R_low) / e_m). The unit is 1 in all but one case:
// if the loss without the weight is too large for a double, mass and cross are multiplied by the unit, and the weight
// is divided by it.
struct alignas(64) RowNumbers {
    static constexpr int rows = RowDiagnostics::rows;
    static constexpr int room = rows + Lanes<float>::lanes;    // all lanes of a group are written, wherever it begins
    double R[room], R_low[room], m[room], m_shifted[room], n0[room], mass[room], cross[room], weight[rows], unit[rows];
    double log_high[room], log_low[room];                      // the logarithm as a sum of two, if a z-loss has a gradient
    std::int64_t top[rows];                                    // the first class with the largest logit, if a result needs it
    RowDiagnostics diagnostics;
};
static_assert(RowNumbers::rows % Lanes<float>::lanes == 0 && RowNumbers::rows % Lanes<double>::lanes == 0, "whole groups");

// The numbers of the rows in the lanes of the narrow or the middle kernel, which are those from row k on.
struct LaneNumbers {
    double *R, *R_low, *m, *m_shifted, *n0, *mass, *cross, *weight, *log_high, *log_low;
    RowDiagnostics *diagnostics;                               // of all rows
    std::ptrdiff_t k;

    LaneNumbers() = default;
    LaneNumbers(RowNumbers &rows, std::ptrdiff_t k)
        : R(rows.R + k), R_low(rows.R_low + k), m(rows.m + k), m_shifted(rows.m_shifted + k), n0(rows.n0 + k), mass(rows.mass + k),
          cross(rows.cross + k), weight(rows.weight + k), log_high(rows.log_high + k), log_low(rows.log_low + k), diagnostics(&rows.diagnostics), k(k) {}
};

// The denominator of a row's probabilities, R + e_m.
template <class S, class D = double> struct Denominator {
    D sum, low, inverse;                                       // low: what the sum rounds off

    Denominator() = default;
    SOFTXENT_INLINE Denominator(const D &R, const D &R_low, const D &e_m) : sum(R + e_m) {
        low = rounded_off(e_m, R, sum) + R_low;
        inverse = D(1) / sum;
    }
    // a / (R + e_m), for a gradient stored as S. If S is double, the roundings on the way are corrected.
    SOFTXENT_INLINE D under(const D &a) const {
        D quotient = a * inverse;
        if constexpr (sizeof(S) < sizeof(double)) return quotient;
        return quotient + (exact_fma(D(0) - quotient, sum, a) - quotient * low) * inverse;
    }
};

template <class S> constexpr double smallest_normal(const S *) { return std::numeric_limits<S>::min(); }
template <class S> constexpr double largest_number(const S *) { return std::numeric_limits<S>::max(); }
// The largest scale of a gradient: with it, factors rounded to S are still far from the largest number.
template <class S> constexpr int largest_scale_exponent(const S *) { return sizeof(S) < sizeof(double) ? 120 : 1000; }
template <class S> constexpr double largest_scale(const S *) { return sizeof(S) < sizeof(double) ? 0x1p120 : 0x1p1000; }

// (R + R_low) / e_m = value + low / e_m, for exponentials of the type S. If S is float, `low` and `e_m` are not set.
template <int N> struct RestRatio { Pack<double, N> value, low, e_m; };
template <class S, int N>
SOFTXENT_INLINE RestRatio<N> rest_ratio(
    const Pack<double, N> &R, const Pack<double, N> &R_low, const Pack<double, N> &m_shifted, const Pack<double, N> &n0
) {
    using P = Pack<double, N>;
    constexpr double UNIT = ExpConstants<S>::UNIT;
    RestRatio<N> ratio;
    // log(e_m / unit_size) as a sum of two, to twice double's digits.
    P zero(0), high = m_shifted - n0 * P(ExpConstants<double>::LN2_HI), low = zero - n0 * P(ExpConstants<double>::LN2_LO);
    if constexpr (sizeof(S) < sizeof(double)) {
        ratio.value = R * exp_parts(zero - high, zero - low).high * P(1 / UNIT);
    } else {
        // The roundings on the way are corrected. Those of the exponentials and of the result remain.
        auto exp = exp_parts(high, low);
        P e_m_low = exp.low * P(UNIT);
        ratio.e_m = exp.high * P(UNIT);
        ratio.value = R / ratio.e_m;
        ratio.low = exact_fma(zero - ratio.value, ratio.e_m, R) + (R_low - ratio.value * e_m_low);
    }
    return ratio;
}
template <class S, int N> SOFTXENT_INLINE TwoDoubles<N> log1p_of(const RestRatio<N> &ratio) {
    auto log = log1p_parts(ratio.value);
    if constexpr (sizeof(S) < sizeof(double)) return log;
    return {log.high, log.low + ratio.low / (ratio.e_m * (Pack<double, N>(1) + ratio.value))};
}

// log1p((R + R_low) / e_m), for exponentials of the type S.
template <class S, int N>
SOFTXENT_INLINE TwoDoubles<N> log1p_rest(
    const Pack<double, N> &R, const Pack<double, N> &R_low, const Pack<double, N> &m_shifted, const Pack<double, N> &n0
) {
    return log1p_of<S>(rest_ratio<S>(R, R_low, m_shifted, n0));
}

template <class S>
Vec<double> log1p_rest(const S *, const Vec<double> &R, const Vec<double> &R_low, const Vec<double> &m_shifted, const Vec<double> &n0) {
    auto log = log1p_rest<S>(R, R_low, m_shifted, n0);
    return log.high + log.low;
}

template <class S> double log1p_rest(const S *t, double R, double R_low, double m_shifted, double n0) {
    using V = Vec<double>;
    return lane0(log1p_rest(t, V(R), V(R_low), V(m_shifted), V(n0)));
}

// Find the logarithm of row k; returns its log-sum-exp.
template <class S> double find_log(const S *, RowNumbers *rows, int k) {
    using V = Vec<double>;
    auto log = log1p_rest<S>(V(rows->R[k]), V(rows->R_low[k]), V(rows->m_shifted[k]), V(rows->n0[k]));
    rows->log_high[k] = lane0(log.high);
    rows->log_low[k] = lane0(log.low);
    return rows->m[k] + (rows->log_high[k] + rows->log_low[k]);
}

// lse, from m and log(S / e_m).
template <int N> SOFTXENT_INLINE TwoDoubles<N> log_sum_exp(const Pack<double, N> &m, const TwoDoubles<N> &log) {
    Pack<double, N> one = log.high + log.low, sum = m + one;
    return {sum, rounded_off(m, one, sum) + rounded_off(log.high, log.low, one)};
}

// The losses of the rows from k on, as many as P has lanes; z_loss is not 0 only if HAS_Z. `has_logs`: rows has logarithms.
template <bool HAS_Z, class S, class P> SOFTXENT_INLINE P losses_at(const RowNumbers &rows, int k, double z_loss, bool has_logs) {
    P zero(0), mass = load_pack<P>(rows.mass + k), cross = load_pack<P>(rows.cross + k), weight = load_pack<P>(rows.weight + k);
    TwoDoubles<P::registers> log;
    if (HAS_Z && has_logs) {
        log = {load_pack<P>(rows.log_high + k), load_pack<P>(rows.log_low + k)};
    } else {
        log = log1p_rest<S>(
            load_pack<P>(rows.R + k), load_pack<P>(rows.R_low + k), load_pack<P>(rows.m_shifted + k), load_pack<P>(rows.n0 + k));
    }
    // A row of weight 0 has no loss, whatever it holds.
    const auto if_it_counts = [&](const P &loss) { return select_equal(weight, zero, zero, loss); };
    // If the loss is infinite, `low` is NaN (inf - inf) and is left out.
    const auto weighted = [&](const P &loss, const P &low) { return weight * select_equal(loss - loss, zero, loss + low, loss); };
    P loss, low = zero;
    if constexpr (sizeof(S) < sizeof(double)) {
        loss = mass * (log.high + log.low) + cross;
    } else {
        P product = mass * log.high;
        loss = product + cross;
        low = rounded_off(product, cross, loss) + exact_fma(mass, log.high, zero - product) + mass * log.low;
    }
    if constexpr (!HAS_Z) {
        return if_it_counts(weighted(loss, low));
    } else {
        P z = P(z_loss) * load_pack<P>(rows.unit + k), infinite(std::numeric_limits<double>::infinity());
        auto lse = log_sum_exp(load_pack<P>(rows.m + k), log);
        P square = lse.high * lse.high, square_low = exact_fma(lse.high, lse.high, zero - square) + P(2) * lse.high * lse.low;
        P sum = loss + z * square;
        P result = weighted(sum, low + rounded_off(loss, z * square, sum) + z * square_low);
        // If the square overflows, the product with small weights may still be finite. Then `low` does not matter.
        return if_it_counts(select_equal(sum, infinite, weight * z * lse.high * lse.high + weighted(loss, low), result));
    }
}

// Numbers of several rows side by side, to hide the latency of their logarithms.
using Several = Pack<double, Vec<double>::registers < 4 ? 4 : Vec<double>::registers>;

template <bool HAS_Z, class S> void row_losses_of(const RowNumbers &rows, int count, double z_loss, bool has_logs, double *losses) {
    using V = Vec<double>;
    using Many = Pack<double, V::registers == 1 ? 8 : Several::registers>;
    int k = 0;
    for (; k + Several::lanes < count && k + Many::lanes <= RowNumbers::rows; k += Many::lanes)
        store(losses + k, losses_at<HAS_Z, S, Many>(rows, k, z_loss, has_logs));
    for (; k + V::lanes < count && k + Several::lanes <= RowNumbers::rows; k += Several::lanes)
        store(losses + k, losses_at<HAS_Z, S, Several>(rows, k, z_loss, has_logs));
    for (; k < count; k += V::lanes) store(losses + k, losses_at<HAS_Z, S, V>(rows, k, z_loss, has_logs));
}

// The losses of the first `count` rows; elements of `losses` beyond them are overwritten too.
template <class S> void row_losses(const S *, const RowNumbers &rows, int count, double z_loss, bool has_logs, double *losses) {
    z_loss == 0 ? row_losses_of<false, S>(rows, count, 0, false, losses) : row_losses_of<true, S>(rows, count, z_loss, has_logs, losses);
}

}  // namespace softxent
