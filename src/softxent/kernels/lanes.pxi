# The narrow kernel: as many rows at once as Lanes has lanes, a row to a lane, class by class.
#
# It computes what the wide kernel in rows.pxi computes, by the same operations in the same order for each row, so the
# two agree to the bit and a call may use either. What is added across lanes there is added across classes here.
#
# The logits stand in a tile, class c of lane k at x[c * lanes_of(x) + k], and are overwritten by the exponentials and
# then by the gradient. The phases follow each other as the functions stand here; what one knows for the next is in
# LaneGroup.


cdef struct Ahead:
    # Where the next group of rows is: what class c of this one asks for starts at start + c * step. With a step of 0
    # that is the same line again and again, which costs next to nothing.
    const char* start
    Py_ssize_t step


cdef inline void ask_for(const Ahead* ahead, Py_ssize_t c) noexcept nogil:
    """Ask for the share of class c: of what the whole group needs, asked for at once, most would be dropped."""
    prefetch(ahead.start + c * ahead.step, LANE_BYTES)


cdef void find_top(LaneGroup[storage]* group, const storage* x, Py_ssize_t n, RowNumbers* rows) noexcept nogil:
    """The maximum of each lane, NaNs passed over, the unit that follows from it, and its exponential."""
    cdef Lanes[storage] m = Lanes[storage](-INFINITY)
    cdef Py_ssize_t i
    for i in range(n):
        m = maximum(load_lanes(x + i * lanes_of(x)), m)
    group.unit = LanesUnit[storage](m)
    store_as_double(rows.m, m)
    store_as_double(rows.over, m - group.unit.shift)
    store_as_double(rows.n0, group.unit.n0)
    store(group.m, m)
    store(group.e_top, exp(m, group.unit))


cdef Lanes[storage] at_labels(const LaneGroup[storage]* group, const storage* x) noexcept nogil:
    cdef storage[MAX_LANES] picked
    cdef Py_ssize_t lane
    for lane in range(lanes_of(x)):
        picked[lane] = x[group.label[lane] * lanes_of(x) + lane]
    return load_lanes(&picked[0])


cdef void find_labels(
    LaneGroup[storage]* group, const storage* x, const storage* class_weights, Py_ssize_t count, RowNumbers* rows
) noexcept nogil:
    """find_amounts of each lane, of one amount for its label; only `count` have a label."""
    cdef storage[MAX_LANES] picked
    cdef Lanes[storage] none = Lanes[storage](-1)
    cdef Py_ssize_t i
    for i in range(count, lanes_of(x)):
        group.label[i] = 0
    store(picked, at_labels(group, x))
    for i in range(lanes_of(x)):
        rows.mass[i] = 1
        rows.cross[i] = <double> group.m[i] - <double> picked[i]
        group.rest[i] = 0
        group.special[i] = <storage> group.label[i]
    store(group.amount, Lanes[storage](1))
    store(group.top, select_equal(load_lanes(&picked[0]), load_lanes(group.m), load_lanes(group.special), none))
    if class_weights != NULL:
        for i in range(lanes_of(x)):
            group.amount[i] = class_weights[group.label[i]]
            rows.mass[i] = group.amount[i]
            rows.cross[i] = share_of(group.amount[i], rows.cross[i])
        store(group.top, select_equal(load_lanes(group.amount), Lanes[storage](0), none, load_lanes(group.top)))


cdef void find_distributions(
    LaneGroup[storage]* group, const storage* x, const storage* t, Py_ssize_t n, RowNumbers* rows
) noexcept nogil:
    """find_distribution of each lane, whose row is one stretch."""
    cdef Lanes[storage] top = Lanes[storage](-1), at_top = Lanes[storage](0), m = load_lanes(group.m)
    cdef Lanes[storage] logits, weights, here, zero = at_top
    cdef storage[MAX_LANES] weight_at_top
    cdef double[MAX_LANES] low
    cdef Py_ssize_t i, c
    for c in range(n - 1, -1, -1):
        i = c * lanes_of(x)
        logits = load_lanes(x + i)
        weights = load_lanes(t + i)
        here = select_equal(logits, m, Lanes[storage](<double> c), top)
        top = select_equal(weights, zero, top, here)
        at_top = select_equal(top, Lanes[storage](<double> c), weights, at_top)
    store(group.top, top)
    store(weight_at_top, at_top)
    lane_gaps(x, t, n, group.m, group.top, rows.cross, group.rest, low)
    for i in range(lanes_of(x)):
        rows.mass[i] = group.rest[i] + weight_at_top[i]


cdef void smooth(
    LaneGroup[storage]* group, const storage* x, const Formula* formula, Py_ssize_t n, RowNumbers* rows
) noexcept nogil:
    """smooth_numbers of each lane."""
    cdef double[MAX_LANES] gaps
    cdef Py_ssize_t lane
    lane_gap_sums(x, n, group.m, gaps)
    for lane in range(lanes_of(x)):
        smooth_numbers(formula, n, rows.mass[lane], gaps[lane], rows.cross + lane, group.rest + lane)


cdef void take_exponentials(
    LaneGroup[storage]* group, storage* x, Py_ssize_t n, const Ahead* next_logits, const Ahead* next_grad,
    RowNumbers* rows
) noexcept nogil:
    """The logits become exponentials, R of each lane their sum; what the next group needs is asked for."""
    cdef LanesUnit[storage] unit = group.unit
    cdef storage[MAX_LANES] taken_off
    cdef Py_ssize_t c
    for c in range(n):
        ask_for(next_logits, c)
        ask_for(next_grad, c)
        store(x + c * lanes_of(x), exp(load_lanes(x + c * lanes_of(x)), unit))
    store(taken_off, select_equal(
        load_lanes(group.top), Lanes[storage](-1), load_lanes(group.e_top), Lanes[storage](0)))
    lane_sums(x, n, group.top, &taken_off[0], rows.R, rows.R_low)


cdef void find_products_of_lanes(
    const Products* products, Py_ssize_t i, Py_ssize_t count, LaneGroup[storage]* group, const storage* x,
    const storage* e, Py_ssize_t n, RowNumbers* rows
) noexcept nogil:
    """find_products of each lane, from logits x and their exponentials e."""
    cdef Lanes[storage] m = load_lanes(group.m), argmax = Lanes[storage](-1), good = Lanes[storage](1), logits
    cdef storage[MAX_LANES] top, has_no_nan
    cdef double[MAX_LANES] gaps, R, R_low, logs
    cdef Py_ssize_t c, lane = 0
    for c in range(n - 1, -1, -1):
        logits = load_lanes(x + c * lanes_of(x))
        argmax = select_equal(logits, m, Lanes[storage](<double> c), argmax)
        good = select_equal(logits, logits, good, Lanes[storage](0))
    store(top, argmax)
    store(has_no_nan, good)
    lane_gaps(x, e, n, group.m, top, gaps, R, R_low)
    while lane < lanes_of(x):
        store(logs + lane, log_over_top(
            x, load(&R[lane]), load(&R_low[lane]), load(rows.over + lane), load(rows.n0 + lane)))
        lane += ROWS_AT_ONCE
    for lane in range(count):
        if rows.weight[lane] == 0:
            set_no_products(products, i + lane)
        else:
            set_products(
                products, i + lane, <int64_t> top[lane], has_no_nan[lane] == 0, logs[lane], rows.m[lane],
                rows.m[lane] - x[group.label[lane] * lanes_of(x) + lane], gaps[lane] / (R[lane] + group.e_top[lane]))


cdef void find_shares(
    LaneGroup[storage]* group, const storage* tag, const Formula* formula, Py_ssize_t n, const double* scales,
    RowNumbers* rows
) noexcept nogil:
    """What smoothing changes in the gradient, as in finish_row."""
    cdef Vec[double] minus
    cdef Py_ssize_t i = 0
    while i < lanes_of(tag):
        minus = Vec[double](0) - load(scales + i)
        store_rounded(group.offset + i, minus * (Vec[double](formula.smoothing / n) * load(rows.mass + i)))
        store_rounded(group.minus + i, minus * Vec[double](1 - formula.smoothing))
        i += ROWS_AT_ONCE


cdef void add_z_loss(
    LaneGroup[storage]* group, const storage* tag, const Formula* formula, RowNumbers* rows
) noexcept nogil:
    """group.mass and group.rest with what z-loss adds to them, as in finish_row; once for each group."""
    cdef Vec[double] extra
    cdef Py_ssize_t i = 0
    while i < lanes_of(tag):
        extra = Vec[double](2 * formula.z_loss) * (load(rows.m + i) + log_over_top(
            tag, load(rows.R + i), load(rows.R_low + i), load(rows.over + i), load(rows.n0 + i)))
        store(group.mass + i, load(rows.mass + i) + extra)
        store(group.rest + i, load(group.rest + i) + extra)
        i += ROWS_AT_ONCE


cdef bint find_factors(
    LaneGroup[storage]* group, storage* e, const Formula* formula, Py_ssize_t n, const double* scales, bint has_labels,
    RowNumbers* rows
) noexcept nogil:
    """What makes the gradient of the exponentials, as in finish_row; False if a scale is too large."""
    cdef Vec[double] zero = Vec[double](0), none = Vec[double](-1), least = Vec[double](-INFINITY), most = zero
    cdef Vec[double] R, e_top, mass, product, factor, scale
    cdef Denominator[storage, Vec[double]] whole
    cdef Lanes[storage] label = load_lanes(group.special), at_label
    cdef const double* masses = rows.mass
    cdef Py_ssize_t i = 0
    if formula.z_loss != 0:
        add_z_loss(group, e, formula, rows)
        masses = group.mass
    while i < lanes_of(e):
        R = load(rows.R + i)
        e_top = load_as_double(group.e_top + i)
        mass = load(masses + i)
        whole = Denominator[storage, Vec[double]](R, load(rows.R_low + i), e_top)
        scale = load(scales + i)
        product = scale * mass
        factor = whole.under(product)
        most = maximum(maximum(product, zero - product), most)
        least = maximum(zero - maximum(factor, zero - factor), least)
        store_rounded(group.factor + i, factor)
        # Where R < e_top, the top has more than half of the probability.
        store_rounded(group.special + i, select_equal(maximum(R, e_top), R, none, load_as_double(group.top + i)))
        store_rounded(group.value + i, scale * (load(group.rest + i) - mass * whole.under(R)))
        store_rounded(group.minus + i, zero - scale)
        i += ROWS_AT_ONCE
    if largest(most) > largest_scale(e):
        return False
    if formula.smoothing != 0:
        find_shares(group, e, formula, n, scales, rows)
    if largest(least) > -smallest_normal(e):
        take_units_out(group, e, n, scales, masses, rows)
    if has_labels:
        at_label = at_labels(group, e)
        if formula.smoothing != 0:
            at_label = fma(at_label, load_lanes(group.factor), load_lanes(group.offset))
        else:
            at_label = at_label * load_lanes(group.factor)
        at_label = fma(load_lanes(group.amount), load_lanes(group.minus), at_label)
        store(group.value, select_equal(load_lanes(group.special), label, load_lanes(group.value), at_label))
        store(group.special, label)
    return True


cdef void take_units_out(
    LaneGroup[storage]* group, storage* e, Py_ssize_t n, const double* scales, const double* masses,
    const RowNumbers* rows
) noexcept nogil:
    """The factors of targets of next to no mass, as in finish_row."""
    cdef Denominator[storage, double] whole
    cdef Py_ssize_t lane, c
    for lane in range(lanes_of(e)):
        whole = Denominator[storage, double](rows.R[lane], rows.R_low[lane], group.e_top[lane])
        if fabs(whole.under(scales[lane] * masses[lane])) < smallest_normal(e):
            group.factor[lane] = <storage> (scales[lane] * masses[lane] / (whole.sum / unit_size(e)))
            for c in range(n):
                e[c * lanes_of(e) + lane] *= <storage> (1 / unit_size(e))


cdef void take_gradients(
    LaneGroup[storage]* group, storage* e, const storage* t, bint smoothed, Py_ssize_t n
) noexcept nogil:
    """The exponentials become the gradient; t is NULL but for distributions."""
    cdef Lanes[storage] factor = load_lanes(group.factor), special = load_lanes(group.special)
    cdef Lanes[storage] value = load_lanes(group.value), minus = load_lanes(group.minus)
    cdef Lanes[storage] offset = load_lanes(group.offset), g
    cdef Py_ssize_t c, i
    for c in range(n):
        i = c * lanes_of(e)
        g = load_lanes(e + i) * factor
        if smoothed:
            g = fma(load_lanes(e + i), factor, offset)
        if t != NULL:
            g = fma(load_lanes(t + i), minus, g)
        store(e + i, select_equal(Lanes[storage](<double> c), special, value, g))
