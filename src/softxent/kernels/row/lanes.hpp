// What the narrow kernel adds up across the classes of a tile, and what its phases, and those of the middle kernel, know of
// the rows in the lanes.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "../math/exp.hpp"
#include "results.hpp"
#include "target.hpp"

namespace softxent {

// The number c of a class, in all lanes. Loaded from a table, because to convert c takes longer.
template <class S> inline constexpr auto CLASS_NUMBERS = [] {
    struct { S number[TILE_BYTES / LANE_BYTES]; } all{};
    for (int c = 0; c < TILE_BYTES / LANE_BYTES; ++c) all.number[c] = static_cast<S>(c);
    return all;
}();
template <class P, class S> SOFTXENT_INLINE P class_number(const S *, std::ptrdiff_t c) {
    P out;
    repeat<P::registers>([&](auto i) { out.r[i] = isa::broadcast(CLASS_NUMBERS<S>.number[c]); });
    return out;
}
template <class S> SOFTXENT_INLINE Lanes<S> class_in_lanes(const S *tag, std::ptrdiff_t c) {
    return class_number<Lanes<S>>(tag, c);
}

// N Vecs of a tile, for classes that are a Vec's worth of classes apart.
template <int N, class S> SOFTXENT_INLINE Pack<S, N * registers_of_vec<S>> load_classes(const S *v) {
    Pack<S, N * registers_of_vec<S>> out;
    repeat<N>([&](auto j) { set_registers<j * registers_of_vec<S>>(&out, load(v + j * Vec<S>::lanes * Lanes<S>::lanes)); });
    return out;
}
// v, which is of the classes c, ..., but 0 in lanes that leave a class out.
template <int N, class S, class P> SOFTXENT_INLINE P all_but(const S *left_out, const P &v, std::ptrdiff_t c) {
    P out;
    Vec<S> left = load(left_out);
    repeat<N>([&](auto j) {
        constexpr int i = j * registers_of_vec<S>;
        set_registers<i>(&out, select_equal(
            class_number<Vec<S>>(left_out, c + j * Vec<S>::lanes), left, Vec<S>(0), registers_from<registers_of_vec<S>, i>(v)));
    });
    return out;
}

// For every lane of a tile, the sum over its n classes minus taken_off, with the bits of the wide kernel's sums.
// terms(part, c, N) is what N classes add, the first of which is c: N Vecs for the rows of that part of the lanes.
// `rounded` gets what `values` round off.
template <class S, class F>
SOFTXENT_INLINE void lane_sums_of(F terms, std::ptrdiff_t n, const S *taken_off, double *values, double *rounded) {
    constexpr int step = Vec<S>::lanes, block = Block<S>::lanes;
    const std::integral_constant<int, 1> one;
    const std::integral_constant<int, block / step> four;
    const std::ptrdiff_t blocks_end = n - n % block;
    const int count = n < step ? static_cast<int>(n) : step;
    decltype(Sum<S>::sum) slots[step];
    repeat<Lanes<S>::lanes / step>([&](auto part) {
        for (int i = 0; i < count; ++i) {
            std::ptrdiff_t c = i;
            Sum<S> sum;
            if (blocks_end > 0) {
                sum = Sum<S>(fold_sum(terms(part, c, four)));
                for (c += block; c < blocks_end; c += block) sum.add(fold_sum(terms(part, c, four)));
            } else {
                sum = Sum<S>(terms(part, c, one));
                c += step;
            }
            for (; c < n; c += step) sum.add(terms(part, c, one));
            slots[i] = sum.sum;
        }
        Sum<S>::values_minus(slots, count, taken_off + part * step, values + part * step, rounded + part * step);
    });
}
// The sums of v, without the class that each lane leaves out.
template <class S>
void lane_sums(const S *v, std::ptrdiff_t n, const S *left_out, const S *taken_off, double *values, double *rounded) {
    lane_sums_of([=](auto part, std::ptrdiff_t c, auto count) {
        constexpr int lane = part * Vec<S>::lanes;
        return all_but<count>(left_out + lane, load_classes<count>(v + lane + c * Lanes<S>::lanes), c);
    }, n, taken_off, values, rounded);
}
// The sums of term(at, count, m), for some lanes whose numbers are m: what `count` classes add, which are at `at` in a tile.
template <class S, class F> SOFTXENT_INLINE void lane_sums_from(const S *numbers, std::ptrdiff_t n, double *values, F term) {
    constexpr int lanes = Lanes<S>::lanes;
    const S nothing[lanes] = {};
    double rounded[lanes];
    lane_sums_of([=](auto part, std::ptrdiff_t c, auto count) {
        constexpr int lane = part * Vec<S>::lanes;
        Vec<S> m = load(numbers + lane);
        return term(lane + c * lanes, count, m);
    }, n, nothing, values, rounded);
}
// m - x, for some classes of the lanes whose numbers are m.
template <class S, int N> SOFTXENT_INLINE Pack<S, N> classes_below(const Vec<S> &m, const Pack<S, N> &x) {
    return for_lanes<Pack<S, N>>(m) - x;
}
// The sums of m - x.
template <class S> void lane_gap_sums(const S *x, std::ptrdiff_t n, const S *m, double *values) {
    lane_sums_from(m, n, values, [=](std::ptrdiff_t at, auto count, const Vec<S> &most) {
        return classes_below(most, load_classes<count>(x + at));
    });
}
// The sums of w (m - x), for weights w of the classes; 0 * inf is NaN, which only the wide kernel takes for 0.
template <class S> void lane_weighted_gap_sums(const S *x, const S *w, std::ptrdiff_t n, const S *m, double *values) {
    lane_sums_from(m, n, values, [=](std::ptrdiff_t at, auto count, const Vec<S> &most) {
        const S *first = w + at / Lanes<S>::lanes;
        Pack<S, count * registers_of_vec<S>> weights;
        repeat<count>([&](auto j) {
            set_registers<j * registers_of_vec<S>>(&weights, Vec<S>(static_cast<double>(first[j * Vec<S>::lanes])));
        });
        return weights * classes_below(most, load_classes<count>(x + at));
    });
}
// The sums of e (m - x), for the exponentials e of the logits x.
template <class S> void lane_entropy_sums(const S *e, const S *x, std::ptrdiff_t n, const S *m, double *values) {
    lane_sums_from(m, n, values, [=](std::ptrdiff_t at, auto count, const Vec<S> &most) {
        return entropy_terms(load_classes<count>(e + at), load_classes<count>(x + at), most);
    });
}
// The sums of e (at_top - v), as product_sum.
template <class S> void lane_product_sums(const S *e, const S *v, std::ptrdiff_t n, const S *at_top, double *values) {
    lane_sums_from(at_top, n, values, [=](std::ptrdiff_t at, auto count, const Vec<S> &top) {
        return load_classes<count>(e + at) * classes_below(top, load_classes<count>(v + at));
    });
}
// For distributions t: the sums of t (m - x), and those of t without the class that each lane leaves out, with what these
// round off in weights_low.
template <class S>
void lane_gaps(
    const S *x, const S *t, std::ptrdiff_t n, const S *m, const S *left_out, double *gaps, double *weights, double *weights_low
) {
    constexpr int step = Vec<S>::lanes, lanes = Lanes<S>::lanes;
    const int count = n < step ? static_cast<int>(n) : step;
    const S nothing[step] = {};
    double rounded[step];
    decltype(Sum<S>::sum) gap_slots[step], weight_slots[step];
    for (int lane = 0; lane < lanes; lane += step, x += step, t += step) {
        auto largest = load_wide(m + lane);
        for (int i = 0; i < count; ++i) {
            Sum<S> gap, weight;
            for (std::ptrdiff_t c = i; c < n; c += step) {
                gap.template add_gaps<true>(load_wide(t + c * lanes), load_wide(x + c * lanes), largest);
                weight.add(all_but<1>(left_out + lane, load(t + c * lanes), c));
            }
            gap_slots[i] = gap.sum;
            weight_slots[i] = weight.sum;
        }
        Sum<S>::values_minus(gap_slots, count, nothing, gaps + lane, rounded);
        Sum<S>::values_minus(weight_slots, count, nothing, weights + lane, weights_low + lane);
    }
}

// As row_mass and blend_row, for the distributions of a tile.
template <class S> void lane_masses(const S *t, std::ptrdiff_t n, double *masses) {
    using V = Vec<double>;
    for (int lane = 0; lane < Lanes<S>::lanes; lane += V::lanes)
        store(masses + lane, mass_of<V>([=](std::ptrdiff_t c) { return load_as_double(t + lane + c * Lanes<S>::lanes); }, n));
}
template <class S>
void blend_lanes(S *t, std::ptrdiff_t n, double smoothing, const double *masses, const S *allowed, const S *class_weight) {
    using V = Vec<double>;
    constexpr int lanes = Lanes<S>::lanes;
    for (int lane = 0; smoothing != 0 && lane < lanes; lane += V::lanes) {
        V n_allowed(allowed == nullptr ? static_cast<double>(n) : 0);
        for (std::ptrdiff_t c = 0; allowed != nullptr && c < n; ++c) n_allowed = n_allowed + load_as_double(allowed + lane + c * lanes);
        V share = share_of_each(smoothing, n_allowed, load(masses + lane)), amount = share;
        for (std::ptrdiff_t i = lane; i < n * lanes; i += lanes) {
            if (allowed != nullptr) amount = share * load_as_double(allowed + i);
            store(t + i, smoothed(smoothing, load_as_double(t + i), amount));
        }
    }
    for (std::ptrdiff_t c = 0; class_weight != nullptr && c < n; ++c)
        store(t + c * lanes, load_lanes(t + c * lanes) * Lanes<S>(static_cast<double>(class_weight[c])));
}

// The largest absolute value of n numbers; NaNs are ignored.
inline double largest_size(const double *v, std::ptrdiff_t n) {
    constexpr std::ptrdiff_t step = Vec<double>::lanes;
    Vec<double> zero(0);
    Vec<double> size = zero;
    for (std::ptrdiff_t i = 0; i < n; i += step) {
        Vec<double> x = load_first(v + i, n - i < step ? n - i : step, 0);
        size = maximum(maximum(x, zero - x), size);
    }
    return largest(size);
}

// Whether all numbers for the lanes are finite, and so small that their sum is, too.
inline bool are_finite(const double *v, std::ptrdiff_t n) {
    Vec<double> sum(0);
    for (std::ptrdiff_t i = 0; i < n; i += Vec<double>::lanes) sum = sum + load(v + i);
    return all_equal(sum - sum, Vec<double>(0));
}

// What the phases of the narrow and the middle kernel know of the rows in the lanes; see narrow.pxi and middle.pxi.
template <class S> struct alignas(64) LaneGroup {
    static constexpr int lanes = Lanes<S>::lanes;
    S m[lanes], e_m[lanes];                                    // the largest logit, and its exponential
    S argmax[lanes];                                           // as in RowSums; a float holds every class there can be
    double rest[lanes];                                        // as in RowSums
    S label_class[lanes], label_logit[lanes];                  // the label as a number, and the logit there
    S label_amount[lanes];                                     // what the target gives to the label
    LanesUnit<S> unit;
    Gradient<Lanes<S>> gradient;
    Lanes<S> own_class, own_grad;                              // the class whose gradient is set by itself, -1 for none
    std::int64_t top[lanes];                                   // of a PRODUCT: the class with the largest logit
    std::int64_t *label;                                       // last, so that the arrays start at cache lines
};

// The maximum of each lane, the unit that follows from it, and its exponential.
template <class S> SOFTXENT_INLINE void set_m(LaneGroup<S> *group, const Lanes<S> &m, const LaneNumbers &numbers) {
    group->unit = LanesUnit<S>(m);
    store_as_double(numbers.m, m);
    store_as_double(numbers.m_shifted, m - group->unit.shift);
    store_as_double(numbers.n0, group->unit.n0);
    store(group->m, m);
    store(group->e_m, exp(m, group->unit));
}
// The same, from the tile x; NaNs are ignored.
template <class S> SOFTXENT_INLINE void find_m(LaneGroup<S> *group, const S *x, std::ptrdiff_t n, const LaneNumbers &numbers) {
    using L = Lanes<S>;
    L m(-std::numeric_limits<double>::infinity());
    for (std::ptrdiff_t c = 0; c < n; ++c) m = maximum(load_lanes(x + c * L::lanes), m);
    set_m(group, m, numbers);
}

template <class S> SOFTXENT_INLINE void find_label_classes(LaneGroup<S> *group) {
    std::int32_t label[Lanes<S>::lanes];                       // becomes vector code, unlike 64-bit integers
    for (int i = 0; i < Lanes<S>::lanes; ++i) label[i] = static_cast<std::int32_t>(group->label[i]);
    for (int i = 0; i < Lanes<S>::lanes; ++i) group->label_class[i] = static_cast<S>(label[i]);
}

// Up to FEW_CLASSES, to compare the label to every class is faster than to load from where it says.
inline constexpr std::ptrdiff_t FEW_CLASSES = 16;
template <class S> SOFTXENT_INLINE void find_label_logits(LaneGroup<S> *group, const S *x, std::ptrdiff_t n) {
    using L = Lanes<S>;
    const std::int64_t *label = group->label;
    find_label_classes(group);
    L classes = load_lanes(group->label_class), logit(-1);
    if (n <= FEW_CLASSES) {
        for (std::ptrdiff_t c = 0; c < n; ++c)
            logit = select_equal(class_number<L>(x, c), classes, load_lanes(x + c * L::lanes), logit);
    } else {
        logit = each_lane<L>([=](int i) { return x[label[i] * L::lanes + i]; });
    }
    store(group->label_logit, logit);
}

// As find_sparse, for each lane, with its label as the only entry, whose class and logit the group has.
template <class S> SOFTXENT_INLINE void find_labels(LaneGroup<S> *group, const S *class_weight, const LaneNumbers &numbers) {
    using L = Lanes<S>;
    using D = AsDouble<Lanes<S>>;
    const std::int64_t *label = group->label;
    L m = load_lanes(group->m), logit = load_lanes(group->label_logit), none(-1);
    L argmax = select_equal(logit, m, load_lanes(group->label_class), none);
    D gap = load_pack_as_double<D>(group->m) - load_pack_as_double<D>(group->label_logit);
    store(group->label_amount, L(1));
    store(numbers.mass, D(1));
    store(numbers.cross, gap);
    store(group->rest, D(0));
    store(group->argmax, argmax);
    if (class_weight == nullptr) return;
    L amount = each_lane<L>([=](int i) { return class_weight[label[i]]; });
    store(group->label_amount, amount);
    D mass = load_pack_as_double<D>(group->label_amount);
    mass = select_equal(mass, D(0), D(0), mass);               // -0 is left out like 0
    store(numbers.mass, mass);
    store(numbers.cross, share_of(mass, gap));
    store(group->argmax, select_equal(amount, L(0), none, argmax));
}

// Without targets, the class with the largest logit stands for the label.
template <class S> SOFTXENT_INLINE void set_tops(LaneGroup<S> *group, const LaneNumbers &numbers) {
    using D = AsDouble<Lanes<S>>;
    store(group->label_logit, load_lanes(group->m));
    store(numbers.mass, D(1));
    store(numbers.cross, D(0));
    store(group->rest, D(0));
}
// As find_top, for each lane. A log-sum-exp needs no class from PLAIN_LSE_FROM on.
template <class S>
SOFTXENT_INLINE void find_tops(LaneGroup<S> *group, const S *x, std::ptrdiff_t n, bool of_lse, const LaneNumbers &numbers) {
    using L = Lanes<S>;
    L m = load_lanes(group->m), zero(0), top(0), large(0), limit(PLAIN_LSE_FROM), size = maximum(m, zero - m);
    if (of_lse) large = select_equal(maximum(size, limit), size, L(1), zero);
    if (!all_equal(large, L(1)))
        for (std::ptrdiff_t c = n - 1; c >= 0; --c) top = select_equal(load_lanes(x + c * L::lanes), m, class_number<L>(x, c), top);
    store(group->argmax, select_equal(large, zero, top, L(-1)));
    store(group->label_class, top);
    set_tops(group, numbers);
}

// The entries of sparse targets, one row to a lane. `read` finds MOST entries of every row, from `start` on, and returns how
// many there are: for each lane, the amount and the class of the entry, and where the tile has that class.
template <class S> struct SparseRows {
    static constexpr int lanes = Lanes<S>::lanes, MOST = 8;
    const std::int64_t *indices[lanes];
    const S *probs[lanes];
    std::ptrdiff_t count, n_classes;                           // of a row's target; of the tile
    const S *class_weight;
    S amount[MOST][lanes], class_number[MOST][lanes];
    std::int32_t place[MOST][lanes];

    int read(std::ptrdiff_t start) {
        const int some = static_cast<int>(std::min<std::ptrdiff_t>(MOST, count - start));
        const auto most = static_cast<std::uint64_t>(n_classes - 1);
        for (int i = 0; i < some; ++i) {
            std::int32_t *c = place[i];
            for (int lane = 0; lane < lanes; ++lane) {
                // Indices were checked, but another thread may have changed them since.
                c[lane] = static_cast<std::int32_t>(std::min(static_cast<std::uint64_t>(indices[lane][start + i]), most));
                amount[i][lane] = probs[lane][start + i];
            }
            if (class_weight != nullptr)
                for (int lane = 0; lane < lanes; ++lane) amount[i][lane] *= class_weight[c[lane]];
            for (int lane = 0; lane < lanes; ++lane) class_number[i][lane] = static_cast<S>(c[lane]);
            for (int lane = 0; lane < lanes; ++lane) c[lane] = c[lane] * lanes + lane;
        }
        return some;
    }
};

// As find_sparse, for each lane: entry by entry.
template <class S> void find_sparse_of_lanes(LaneGroup<S> *group, SparseRows<S> *rows, const S *x, const LaneNumbers &numbers) {
    using V = Vec<S>;
    using D = AsDouble<V>;
    constexpr int parts = Lanes<S>::lanes / V::lanes;
    struct { Carried<D> cross{D(0), D(0)}, rest{D(0), D(0)}; D t_at_argmax{0}; V argmax{-1}; } sums[parts];
    for (std::ptrdiff_t start = 0; start < rows->count; start += SparseRows<S>::MOST) {
        const int some = rows->read(start);
        repeat<parts>([&](auto part) {
            constexpr int lane = part * V::lanes;
            auto all = sums[part];
            V zero(0), none(-1), m = load(group->m + lane);
            for (int i = 0; i < some; ++i) {
                V amount = load(rows->amount[i] + lane), number = load(rows->class_number[i] + lane);
                V logit = each_lane<V>([&](int j) { return x[rows->place[i][lane + j]]; });
                D t = as_double(amount);
                all.cross.add(t * gap<true>(t, as_double(logit), as_double(m)));
                V here = select_equal(amount, zero, none, select_equal(logit, m, number, none));
                all.argmax = select_equal(all.argmax, none, here, all.argmax);
                all.t_at_argmax = all.t_at_argmax + as_double(select_equal(all.argmax, number, amount, zero));
                all.rest.add(as_double(select_equal(all.argmax, number, zero, amount)));
            }
            sums[part] = all;
        });
    }
    repeat<parts>([&](auto part) {
        constexpr int lane = part * V::lanes;
        D low, rest = sums[part].rest.minus(D(0), &low);
        store(group->argmax + lane, sums[part].argmax);
        store(group->rest + lane, rest);
        store(numbers.mass + lane, rest + sums[part].t_at_argmax);
        store(numbers.cross + lane, sums[part].cross.minus(D(0), &low));
    });
}

// As subtract_sparse, for each lane; then the gradient at its own class is set.
template <class S> void subtract_sparse_of_lanes(const LaneGroup<S> &group, SparseRows<S> *rows, S *g) {
    using L = Lanes<S>;
    S result[L::lanes], own_class[L::lanes];
    for (std::ptrdiff_t start = 0; start < rows->count; start += SparseRows<S>::MOST) {
        const int some = static_cast<int>(rows->count <= SparseRows<S>::MOST ? rows->count : rows->read(start));
        for (int i = 0; i < some; ++i) {
            const std::int32_t *place = rows->place[i];
            L here = each_lane<L>([=](int j) { return g[place[j]]; });
            store(result, group.gradient.minus_target(here, load_lanes(rows->amount[i])));
            for (int j = 0; j < L::lanes; ++j) g[place[j]] = result[j];
        }
    }
    store(result, group.own_grad);
    store(own_class, group.own_class);
    for (int j = 0; j < L::lanes; ++j)
        if (own_class[j] >= 0) g[static_cast<int>(own_class[j]) * L::lanes + j] = result[j];
}

// Memory of the next group of rows. While class c of this group is visited, LANE_BYTES are prefetched from start + c * step:
// if a whole group were prefetched at once, the CPU would drop most of it. With a step of 0 these are the same lines again
// and again, which costs next to nothing.
struct NextRows {
    const char *start;
    std::ptrdiff_t step;
    NextRows() = default;
    NextRows(const char *p, std::ptrdiff_t bytes) : start(p), step(bytes) {}
    SOFTXENT_INLINE void prefetch_for(std::ptrdiff_t c) const { prefetch(start + c * step, LANE_BYTES); }
};

// What is taken off the sum of all exponentials of each lane: e_m, unless the sum leaves out the argmax.
template <class S> SOFTXENT_INLINE Lanes<S> taken_off(const LaneGroup<S> &group) {
    return select_equal(load_lanes(group.argmax), Lanes<S>(-1), load_lanes(group.e_m), Lanes<S>(0));
}

// The logits become exponentials; R of each lane is their sum. Meanwhile the next group is prefetched.
//
// The sums are another sweep: the CPU has too many exponentials in flight already.
template <class S, class... Next>
void take_exponentials_of_lanes(LaneGroup<S> *group, S *x, std::ptrdiff_t n, const LaneNumbers &numbers, const Next &...next_rows) {
    using L = Lanes<S>;
    S off[L::lanes];
    store(off, taken_off(*group));
    LanesUnit<S> unit = group->unit;
    for (std::ptrdiff_t c = 0; c < n; ++c) {
        (next_rows.prefetch_for(c), ...);
        store(x + c * L::lanes, exp(load_lanes(x + c * L::lanes), unit));
    }
    lane_sums(x, n, group->argmax, off, numbers.R, numbers.R_low);
}

// From this size of scale * mass on, the factor scale * mass / S is a normal number: S of n classes is below 2 n unit_size.
template <class S> constexpr double smallest_scale(const S *p) { return 2 * GROUPED_CLASSES * unit_size(p) * smallest_normal(p); }

// The logarithm of each lane, and what a z-loss adds to its mass.
template <class S> void find_pulls(const S *, const Formula &formula, const LaneNumbers &numbers, double *pull) {
    using D = SomeDoubles<S>;
    for (int i = 0; i < Lanes<S>::lanes; i += D::lanes) {
        auto log = log1p_rest<S>(
            load_pack<D>(numbers.R + i), load_pack<D>(numbers.R_low + i), load_pack<D>(numbers.m_shifted + i),
            load_pack<D>(numbers.n0 + i));
        store(numbers.log_high + i, log.high);
        store(numbers.log_low + i, log.low);
        store(pull + i, D(2 * formula.z_loss) * (load_pack<D>(numbers.m + i) + (log.high + log.low)));
    }
}

// As find_probabilities and find_log_probabilities, for each lane.
template <class S> SOFTXENT_INLINE void find_probabilities_of_lanes(const S *tag, const LaneNumbers &numbers, Probabilities<Lanes<S>> *all) {
    using D = SomeDoubles<S>;
    repeat<Lanes<S>::lanes / D::lanes>([&](auto part) {
        constexpr int i = part * D::lanes, first = i / Lanes<S>::width;
        auto e_m = exact_e_m<S>(load_pack<D>(numbers.m_shifted + i), load_pack<D>(numbers.n0 + i));
        auto some = find_probabilities(tag, load_pack<D>(numbers.R + i), load_pack<D>(numbers.R_low + i), e_m.high, e_m.low);
        set_registers<first>(&all->high, rounded<S>(some.high));
        set_registers<first>(&all->low, rounded<S>(some.low));
        set_registers<first>(&all->at_top, rounded<S>(some.at_top));
    });
}
template <class S>
SOFTXENT_INLINE void find_log_probabilities_of_lanes(const S *tag, const LaneNumbers &numbers, LogProbabilities<Lanes<S>> *all) {
    using D = SomeDoubles<S>;
    repeat<Lanes<S>::lanes / D::lanes>([&](auto part) {
        constexpr int i = part * D::lanes, first = i / Lanes<S>::width;
        auto some = find_log_probabilities(
            tag, load_pack<D>(numbers.m + i), load_pack<D>(numbers.R + i), load_pack<D>(numbers.R_low + i),
            load_pack<D>(numbers.m_shifted + i), load_pack<D>(numbers.n0 + i));
        set_registers<first>(&all->m, rounded<S>(some.m));
        set_registers<first>(&all->high, rounded<S>(some.high));
        set_registers<first>(&all->low, rounded<S>(some.low));
    });
}

// The numbers that make the gradient of the exponentials, as in finish_row. False if scale * mass of a row is so large or
// small that finish_row treats the row specially; `scales_suffice` says that the scales alone rule this out. `share` is what
// smoothing gives to each class, and `pull` what a z-loss adds to the mass; without these options they are not read.
template <class S>
SOFTXENT_INLINE bool finish_lanes(
    LaneGroup<S> *group, const Formula &formula, const double *share, const double *pull, const double *scales, bool scales_suffice,
    const LaneNumbers &numbers
) {
    using D = SomeDoubles<S>;
    const S *tag = group->m;
    D zero(0), most = zero, least(-std::numeric_limits<double>::infinity());
    group->gradient.smoothed = formula.smoothing != 0 && !formula.weighs;
    repeat<Lanes<S>::lanes / D::lanes>([&](auto part) {
        constexpr int i = part * D::lanes, first = i / Lanes<S>::width;
        D R = load_pack<D>(numbers.R + i), e_m = load_pack_as_double<D>(group->e_m + i), class_share = zero;
        D mass = load_pack<D>(numbers.mass + i), rest = load_pack<D>(group->rest + i), scale = load_pack<D>(scales + i);
        if (formula.z_loss != 0) {
            mass = mass + load_pack<D>(pull + i);
            rest = rest + load_pack<D>(pull + i);
        }
        if (formula.smoothing != 0) class_share = load_pack<D>(share + i);
        Denominator<S, D> whole(R, load_pack<D>(numbers.R_low + i), e_m);
        Factors<D> factors = find_factors(tag, formula, whole, R, mass, rest, class_share, scale);
        set_registers<first>(&group->gradient.factor, rounded<S>(factors.factor));
        set_registers<first>(&group->gradient.minus, rounded<S>(factors.minus));
        if (formula.smoothing != 0) set_registers<first>(&group->gradient.offset, rounded<S>(factors.offset));
        // Where R < e_m, the argmax has more than half of the probability.
        D own_class = select_equal(maximum(R, e_m), R, D(-1), load_pack_as_double<D>(group->argmax + i));
        set_registers<first>(&group->own_class, rounded<S>(own_class));
        set_registers<first>(&group->own_grad, rounded<S>(factors.grad_at_argmax));
        if (scales_suffice) return;
        D size = maximum(scale * mass, zero - scale * mass);
        most = maximum(size, most);                            // NaNs are ignored
        least = maximum(select_equal(size, zero, least, zero - size), least);
    });
    return scales_suffice || (largest(most) <= largest_scale(tag) && largest(least) <= -smallest_scale(tag));
}

// Whether R of a lane must be summed again for its Hessian: see has_lost_digits.
template <class S> SOFTXENT_INLINE bool needs_rest(const LaneGroup<S> &group, int lane, double R, std::ptrdiff_t n) {
    return group.argmax[lane] < 0 && has_lost_digits(group.m, R, static_cast<double>(group.e_m[lane]), n);
}
// R of each lane without the class with the largest logit, where that is needed; e has the exponentials.
template <class S>
void find_rests(const LaneGroup<S> &group, const S *e, std::ptrdiff_t n, const LaneNumbers &numbers, double *R, double *R_low) {
    using L = Lanes<S>;
    unsigned lost = 0;
    for (int i = 0; i < L::lanes; ++i) lost |= needs_rest(group, i, numbers.R[i], n) ? 1u : 0u;
    std::copy_n(numbers.R, L::lanes, R);
    std::copy_n(numbers.R_low, L::lanes, R_low);
    if (lost == 0) return;
    L top(-1), e_m = load_lanes(group.e_m);
    S tops[L::lanes];
    const S nothing[L::lanes] = {};
    double rest[L::lanes], rest_low[L::lanes];
    for (std::ptrdiff_t c = 0; c < n; ++c) top = select_equal(load_lanes(e + c * L::lanes), e_m, class_number<L>(e, c), top);
    store(tops, top);
    lane_sums(e, n, tops, nothing, rest, rest_low);
    for (int i = 0; i < L::lanes; ++i) {
        if (!needs_rest(group, i, numbers.R[i], n)) continue;
        R[i] = rest[i];
        R_low[i] = rest_low[i];
    }
}
// As finish_hessian, for each lane, with the `scales` of the Hessian. `own` gets the exponential of the class that is
// set by itself, -1 for none. False as finish_lanes.
template <class S>
SOFTXENT_INLINE bool find_hessians_of_lanes(
    const LaneGroup<S> &group, const Formula &formula, const double *R, const double *R_low, const double *pulls,
    const double *scales, const LaneNumbers &numbers, Hessian<Lanes<S>> *all, Lanes<S> *own
) {
    using D = SomeDoubles<S>;
    const S *tag = group.m;
    D zero(0), most = zero, least(-std::numeric_limits<double>::infinity());
    all->pulled = formula.z_loss != 0;
    repeat<Lanes<S>::lanes / D::lanes>([&](auto part) {
        constexpr int i = part * D::lanes, first = i / Lanes<S>::width;
        D mass = load_pack<D>(numbers.mass + i), scale = load_pack<D>(scales + i), pull = scale * D(2 * formula.z_loss);
        if (formula.z_loss != 0) mass = mass + load_pack<D>(pulls + i);
        D size = maximum(scale * mass, zero - scale * mass);
        most = maximum(maximum(pull, zero - pull), maximum(size, most));
        least = maximum(zero - size, least);
        D rest = load_pack<D>(R + i), e_m = load_pack_as_double<D>(group.e_m + i);
        Denominator<S, D> whole(rest, load_pack<D>(R_low + i), e_m);
        Hessian<D> some = find_hessian(tag, whole, rest, e_m, scale * mass, pull);
        // Where R < e_m, no other class has the exponential e_m.
        set_registers<first>(own, rounded<S>(select_equal(maximum(rest, e_m), rest, D(-1), e_m)));
        set_registers<first>(&all->factor, rounded<S>(some.factor));
        set_registers<first>(&all->minus_inverse, rounded<S>(some.minus_inverse));
        set_registers<first>(&all->pull, rounded<S>(some.pull));
        set_registers<first>(&all->at_top, rounded<S>(some.at_top));
    });
    return largest(most) <= largest_scale(tag) && largest(least) <= -smallest_scale(tag);
}

// The gradient at the label is set by itself: own_grad if the row is confident and right, else the usual one.
template <class S> SOFTXENT_INLINE void find_grad_at_label(LaneGroup<S> *group) {
    using L = Lanes<S>;
    L label = load_lanes(group->label_class), at_label = group->gradient.of(exp(load_lanes(group->label_logit), group->unit));
    L usual = group->gradient.minus_target(at_label, load_lanes(group->label_amount));
    group->own_grad = select_equal(group->own_class, label, group->own_grad, usual);
    group->own_class = label;
}

// The exponentials e become the gradient; t has the distributions, or is null.
template <class S> SOFTXENT_INLINE void take_gradients(const LaneGroup<S> &group, S *e, const S *t, std::ptrdiff_t n) {
    using L = Lanes<S>;
    Gradient<L> gradient = group.gradient;
    L own_class = group.own_class, own_grad = group.own_grad;
    for (std::ptrdiff_t c = 0; c < n; ++c) {
        L g = gradient.of(load_lanes(e + c * L::lanes));
        if (t != nullptr) g = gradient.minus_target(g, load_lanes(t + c * L::lanes));
        store(e + c * L::lanes, select_equal(class_number<L>(e, c), own_class, own_grad, g));
    }
}

// The same for labels that are smoothed, where classes have weights.
template <class S> void take_weighted_gradients(const LaneGroup<S> &group, S *e, const S *class_weight, std::ptrdiff_t n) {
    using L = Lanes<S>;
    Gradient<L> gradient = group.gradient;
    L own_class = group.own_class, own_grad = group.own_grad, label = load_lanes(group.label_class), amount = load_lanes(group.label_amount);
    for (std::ptrdiff_t c = 0; c < n; ++c) {
        L number = class_number<L>(e, c), g = gradient.of(load_lanes(e + c * L::lanes));
        g = fma(L(static_cast<double>(class_weight[c])), gradient.offset, g);
        g = select_equal(number, label, gradient.minus_target(g, amount), g);
        store(e + c * L::lanes, select_equal(number, own_class, own_grad, g));
    }
}

// As take_gradients without t, with the gradient going to the rows at `at`.
template <class S> void write_gradients(const LaneGroup<S> &group, const S *e, std::ptrdiff_t n, S *const *at) {
    using R = Pack<S, 1>;
    lanes_to_rows_of(e, n, at, [&](auto i, std::ptrdiff_t c, R column) {
        R own_grad = registers_from<1, i>(group.own_grad), own_class = registers_from<1, i>(group.own_class);
        Gradient<R> gradient{
            registers_from<1, i>(group.gradient.factor), registers_from<1, i>(group.gradient.offset), R(0), group.gradient.smoothed};
        return select_equal(class_number<R>(e, c), own_class, own_grad, gradient.of(column));
    });
}

// Results of the numbers v of a tile, going to the rows at `at`. result(i, c, column) is that of class c for the lanes of
// register i.
template <class S> void write_probabilities(const Probabilities<Lanes<S>> &all, const Lanes<S> &top, const S *e, std::ptrdiff_t n, S *const *at) {
    using R = Pack<S, 1>;
    lanes_to_rows_of(e, n, at, [&](auto i, std::ptrdiff_t c, R column) {
        Probabilities<R> some{registers_from<1, i>(all.high), registers_from<1, i>(all.low), registers_from<1, i>(all.at_top)};
        R own = registers_from<1, i>(top);
        return select_equal(class_number<R>(e, c), own, some.at_top, some.of(column));
    });
}
template <class S> void write_log_probabilities(const LogProbabilities<Lanes<S>> &all, const S *x, std::ptrdiff_t n, S *const *at) {
    using R = Pack<S, 1>;
    lanes_to_rows_of(x, n, at, [&](auto i, std::ptrdiff_t, R column) {
        LogProbabilities<R> some{registers_from<1, i>(all.m), registers_from<1, i>(all.high), registers_from<1, i>(all.low)};
        return some.of(column);
    });
}
template <class S> void write_products(const Product<Lanes<S>> &all, const S *e, const S *v, std::ptrdiff_t n, S *const *at) {
    using R = Pack<S, 1>;
    lanes_to_rows_of(e, n, at, [&](auto i, std::ptrdiff_t c, R column) {
        Product<R> some{
            registers_from<1, i>(all.at_top), registers_from<1, i>(all.shift), registers_from<1, i>(all.factor),
            registers_from<1, i>(all.pull), all.pulled};
        R vector;
        vector.r[0] = isa::load(v + c * Lanes<S>::lanes + i * R::lanes);
        return some.of(column, vector);
    });
}
template <class S> void write_hessians(const Hessian<Lanes<S>> &all, const Lanes<S> &own, const S *e, std::ptrdiff_t n, S *const *at) {
    using R = Pack<S, 1>;
    lanes_to_rows_of(e, n, at, [&](auto i, std::ptrdiff_t, R column) {
        Hessian<R> some{
            registers_from<1, i>(all.factor), registers_from<1, i>(all.minus_inverse), registers_from<1, i>(all.pull),
            registers_from<1, i>(all.at_top), all.pulled};
        R top = registers_from<1, i>(own);
        return select_equal(column, top, some.at_top, some.of(column));
    });
}

// The middle kernel: what the sweeps over one row need, from its lane.
template <class S, int N> SOFTXENT_INLINE S lane_of(const Pack<S, N> &v, std::ptrdiff_t lane) {
    S number;
    std::memcpy(&number, reinterpret_cast<const char *>(&v) + lane * sizeof(S), sizeof(S));
    return number;
}
template <class S> SOFTXENT_INLINE RowUnit<S> unit_of(const LaneGroup<S> &group, std::ptrdiff_t lane) {
    RowUnit<S> unit;
    unit.shift = lane_of(group.unit.shift, lane);
    unit.n0 = lane_of(group.unit.n0, lane);
    unit.lowest = lane_of(group.unit.lowest, lane);
    unit.rounder = lane_of(group.unit.rounder, lane);
    return unit;
}
template <class S, int N> SOFTXENT_INLINE Gradient<double> of_lane(const Gradient<Pack<S, N>> &all, std::ptrdiff_t lane) {
    return {lane_of(all.factor, lane), lane_of(all.offset, lane), lane_of(all.minus, lane), all.smoothed};
}
template <class S, int N> SOFTXENT_INLINE Probabilities<double> of_lane(const Probabilities<Pack<S, N>> &all, std::ptrdiff_t lane) {
    return {lane_of(all.high, lane), lane_of(all.low, lane), lane_of(all.at_top, lane)};
}
template <class S, int N> SOFTXENT_INLINE LogProbabilities<double> of_lane(const LogProbabilities<Pack<S, N>> &all, std::ptrdiff_t lane) {
    return {lane_of(all.m, lane), lane_of(all.high, lane), lane_of(all.low, lane)};
}
template <class S, int N> SOFTXENT_INLINE Product<double> of_lane(const Product<Pack<S, N>> &all, std::ptrdiff_t lane) {
    return {lane_of(all.at_top, lane), lane_of(all.shift, lane), lane_of(all.factor, lane), lane_of(all.pull, lane), all.pulled};
}
template <class S, int N> SOFTXENT_INLINE Hessian<double> of_lane(const Hessian<Pack<S, N>> &all, std::ptrdiff_t lane) {
    return {
        lane_of(all.factor, lane), lane_of(all.minus_inverse, lane), lane_of(all.pull, lane), lane_of(all.at_top, lane), all.pulled};
}
// What makes the results of the rows, besides the Gradient of the LaneGroup.
template <class S> struct LaneResults {
    Probabilities<Lanes<S>> probabilities;
    LogProbabilities<Lanes<S>> logs;
    Product<Lanes<S>> product;
    Hessian<Lanes<S>> hessian;
};

// Where the rows of such a group are, as far as a call has them.
template <class S> struct GroupRows {
    static constexpr int lanes = Lanes<S>::lanes;
    const char *given[lanes];                                  // the logits
    char *stored[lanes];                                       // where the results go
    S *staged[lanes], *slope[lanes], *hess[lanes];
    const S *vectors[lanes];
    const unsigned char *allowed[lanes];
    Target<S> target[lanes];                                   // not filled in where labels are in lanes: see takes_targets
    const S *const *x;                                         // the logits of the softmax
    S *const *made;                                            // where these are made, then the exponentials, then the results
    std::ptrdiff_t count, n, bytes_to_next;                    // bytes from the given logits to those of the next group
    bool prefetching;                                          // these are prefetched
};

// R of each lane, where R and R_low have a sum that is not finished yet, and what was rounded off.
template <class S> void take_off(const LaneGroup<S> &group, const LaneNumbers &numbers) {
    using D = SomeDoubles<S>;
    S off[Lanes<S>::lanes];
    store(off, taken_off(group));
    for (int i = 0; i < Lanes<S>::lanes; i += D::lanes) {
        Carried<D> sum(load_pack<D>(numbers.R + i), load_pack<D>(numbers.R_low + i));
        D low, R = sum.minus(load_pack_as_double<D>(off + i), &low);
        store(numbers.R + i, R);
        store(numbers.R_low + i, low);
    }
}

// Where the tiles of a group of rows stand: one after the other, as far as a call needs them, null where it does not.
template <class S> struct Tiles {
    S *x;                                                      // logits, then exponentials, then the gradient
    S *t;                                                      // distributions, or targets that are built
    S *slope;                                                  // allowed classes, then the derivative of the logits
    S *kept_logits;                                            // if they are needed after the exponentials
    S *vectors;                                                // of a PRODUCT
    S *hess;                                                   // of a HESSIAN
    S *staging;                                                // rows on their way, and a row for lanes without one
};
static_assert(TILE_BYTES / LANE_BYTES <= GROUPED_CLASSES, "what smallest_scale is made for");
static_assert(2 * GROUP_BYTES <= TILE_BYTES, "results are made in a Tile: of a group and its slopes, or of twice as many rows");
static_assert(TILE_BYTES / LANE_BYTES < 1 << 24, "class numbers are exact in the lanes of a float");
static_assert(sizeof(Lanes<float>) == LANE_BYTES && sizeof(Lanes<double>) == LANE_BYTES, "what tiles are planned with");

}  // namespace softxent
