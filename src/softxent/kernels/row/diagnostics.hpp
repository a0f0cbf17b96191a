// What `evaluate` tells of rows, from the numbers that the kernels find.
#pragma once

#include "lanes.hpp"

namespace softxent {

// As find_diagnostics, for each lane, from logits x and their exponentials e; NaNs are not looked for. Ranks are those of the
// labels of the group.
template <class S>
void find_diagnostics_of(const LaneGroup<S> &group, const S *x, const S *e, std::ptrdiff_t n, const LaneNumbers &numbers) {
    using L = Lanes<S>;
    using D = AsDouble<L>;
    RowDiagnostics &found = *numbers.diagnostics;
    const std::ptrdiff_t k = numbers.k;
    const S nothing[L::lanes] = {};
    S argmaxes[L::lanes], ranks[L::lanes], firsts[L::lanes];
    double gaps[L::lanes];
    L m = load_lanes(group.m), logit = load_lanes(group.label_logit), label = load_lanes(group.label_class);
    L argmax(-1), rank(0), first(-1);         // first: the first class with the logit of the label
    for (std::ptrdiff_t c = n - 1; c >= 0; --c) {
        L v = load_lanes(x + c * L::lanes), number = class_number<L>(x, c);
        argmax = select_equal(v, m, number, argmax);
        first = select_equal(v, logit, number, first);
        rank = count_greater(rank, v, logit);
    }
    store(argmaxes, argmax);
    store(ranks, rank);
    if (!all_equal(first, label)) {
        store(firsts, first);
        for (int i = 0; i < L::lanes; ++i)
            for (std::ptrdiff_t c = static_cast<std::ptrdiff_t>(firsts[i]); c >= 0 && c < group.label[i]; ++c)
                ranks[i] += x[c * L::lanes + i] == group.label_logit[i];
    }
    lane_sums(e, n, argmaxes, nothing, found.R + k, found.R_low + k);
    lane_entropy_sums(e, x, n, group.m, gaps);
    store(found.label_gap + k, as_double(m) - as_double(logit));
    store(found.mean_gap + k, load_pack<D>(gaps) / (load_pack<D>(found.R + k) + load_pack_as_double<D>(group.e_m)));
    for (int i = 0; i < L::lanes; ++i) {
        found.argmax[k + i] = static_cast<std::int32_t>(argmaxes[i]);
        found.rank[k + i] = static_cast<std::int32_t>(ranks[i]);
    }
}

// Write the diagnostics of `count` rows with these labels to place i and on. Those of rows that do not count are 0, and -1.
template <class S>
void write_diagnostics_of(
    const S *, const RowNumbers &rows, const std::int64_t *label, std::ptrdiff_t count, const Diagnostics &to, std::ptrdiff_t i
) {
    using P = Several;
    const RowDiagnostics &found = rows.diagnostics;
    S *log_prob = static_cast<S *>(to.log_prob) + i, *lse = static_cast<S *>(to.lse) + i;
    S *entropy = static_cast<S *>(to.entropy) + i, *confidence = static_cast<S *>(to.confidence) + i;
    for (std::ptrdiff_t k = 0; k < count; k += P::lanes) {
        P zero(0), one(1), infinite(std::numeric_limits<double>::infinity());
        P m = load_pack<P>(rows.m + k), weight = load_pack<P>(rows.weight + k);
        auto ratio = rest_ratio<S>(
            load_pack<P>(found.R + k), load_pack<P>(found.R_low + k), load_pack<P>(rows.m_shifted + k), load_pack<P>(rows.n0 + k));
        auto parts = log1p_of<S>(ratio);
        P log = parts.high + parts.low, ratio_low = zero;      // log(S / e_m)
        if constexpr (sizeof(S) == sizeof(double)) ratio_low = ratio.low / ratio.e_m;
        const auto write = [&](S *p, const P &values) {
            P counted = select_equal(weight, zero, zero, values);
            if (k + P::lanes <= count) return store(p + k, counted);
            store_first(p + k, count - k, counted);
        };
        write(log_prob, P(-1) * (log + load_pack<P>(found.label_gap + k)));
        write(lse, select_equal(maximum(m, zero - m), infinite, m, m + log));
        write(entropy, log + load_pack<P>(found.mean_gap + k));
        write(confidence, Denominator<S, P>(ratio.value, ratio_low, one).under(one));
    }
    // These become vector code, with the pointers of one array in a loop.
    std::int64_t *argmax = to.argmax + i, *rank = to.rank + i;
    unsigned char *correct = to.correct + i;
    double *counts = to.counts + i;
    for (std::ptrdiff_t k = 0; k < count; ++k) counts[k] = rows.weight[k] != 0 ? 1 : 0;
    for (std::ptrdiff_t k = 0; k < count; ++k) rank[k] = rows.weight[k] != 0 ? found.rank[k] : -1;
    for (std::ptrdiff_t k = 0; k < count; ++k) argmax[k] = rows.weight[k] != 0 ? found.argmax[k] : -1;
    for (std::ptrdiff_t k = 0; k < count; ++k) correct[k] = argmax[k] == label[k];
}

}  // namespace softxent
