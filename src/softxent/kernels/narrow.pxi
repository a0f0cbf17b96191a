# The narrow kernel: as many rows at once as Lanes has lanes, one row to a lane, class by class.
#
# It computes what the wide kernel in wide.pxi computes. For each row the operations and their order are the same, so
# the two agree to the bit, and a call may use either. What the wide kernel adds across lanes is added across classes
# here.
#
# The logits are in a tile. The exponentials overwrite them, and then the gradient. The phases are the functions below,
# in their order; LaneGroup holds what one phase finds for the next. If a number of one row leaves its range, the wide
# kernel takes the whole group.


cdef inline void find_m(LaneGroup[real]* group, const real* x, Py_ssize_t n, RowNumbers* numbers) noexcept nogil:
    """The maximum of each lane (NaNs are ignored), the unit that follows from it, and its exponential."""
    cdef Lanes[real] m = Lanes[real](-INFINITY)
    cdef Py_ssize_t i
    for i in range(n):
        m = maximum(load_lanes(x + i * lanes_of(x)), m)
    group.unit = LanesUnit[real](m)
    store_as_double(numbers.m, m)
    store_as_double(numbers.m_shifted, m - group.unit.shift)
    store_as_double(numbers.n0, group.unit.n0)
    store(group.m, m)
    store(group.e_m, exp(m, group.unit))


cdef inline void find_labels(
    LaneGroup[real]* group, const real* x, const real* class_weight, Py_ssize_t count, RowNumbers* numbers
) noexcept nogil:
    """As find_sparse, for each lane, with its label as the only entry; only the first `count` lanes have a label."""
    cdef real[MAX_LANES] picked
    cdef Lanes[real] none = Lanes[real](-1)
    cdef Py_ssize_t i
    for i in range(count, lanes_of(x)):
        group.label[i] = 0
    for i in range(lanes_of(x)):
        group.label_logit[i] = x[group.label[i] * lanes_of(x) + i]
    for i in range(lanes_of(x)):
        numbers.mass[i] = 1
        numbers.cross[i] = <double> group.m[i] - <double> group.label_logit[i]
        group.rest[i] = 0
        group.label_class[i] = <real> group.label[i]
    store(group.label_amount, Lanes[real](1))
    store(group.argmax, select_equal(
        load_lanes(group.label_logit), load_lanes(group.m), load_lanes(group.label_class), none))
    if class_weight != NULL:
        for i in range(lanes_of(x)):
            picked[i] = class_weight[group.label[i]]
        store(group.label_amount, load_lanes(&picked[0]))
        for i in range(lanes_of(x)):
            numbers.mass[i] = picked[i]
            numbers.cross[i] = picked[i] * numbers.cross[i] if picked[i] != 0 else 0
        store(group.argmax, select_equal(load_lanes(&picked[0]), Lanes[real](0), none, load_lanes(group.argmax)))


cdef void find_distributions(
    LaneGroup[real]* group, const real* x, const real* t, Py_ssize_t n, RowNumbers* numbers
) noexcept nogil:
    """As find_distribution, for each lane; a row is one stretch."""
    cdef Lanes[real] argmax = Lanes[real](-1), at_argmax = Lanes[real](0), m = load_lanes(group.m)
    cdef Lanes[real] logits, weights, here, zero = at_argmax
    cdef real[MAX_LANES] t_at_argmax
    cdef double[MAX_LANES] low
    cdef Py_ssize_t i, c
    for c in range(n - 1, -1, -1):
        i = c * lanes_of(x)
        logits = load_lanes(x + i)
        weights = load_lanes(t + i)
        here = select_equal(logits, m, Lanes[real](<double> c), argmax)
        argmax = select_equal(weights, zero, argmax, here)
        at_argmax = select_equal(argmax, Lanes[real](<double> c), weights, at_argmax)
    store(group.argmax, argmax)
    store(t_at_argmax, at_argmax)
    lane_gaps(x, t, n, group.m, group.argmax, numbers.cross, group.rest, low)
    for i in range(lanes_of(x)):
        numbers.mass[i] = group.rest[i] + t_at_argmax[i]


cdef void read_target_of_lane(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, Py_ssize_t lane, Target[real]* target
) noexcept nogil:
    """As read_target, for the row in a lane; lanes without a row of their own get the target of the last row."""
    if lane >= count:
        group.label[lane] = group.label[count - 1]
    group.label_amount[lane] = 1
    read_target(job, i + min(lane, count - 1), group.label + lane, group.label_amount + lane, target)


cdef void find_sparse_of_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, const real* x, RowNumbers* numbers
) noexcept nogil:
    """As find_sparse, for each lane."""
    cdef Target[real] target
    cdef Py_ssize_t lane
    cdef RowSums sums
    cdef double low
    for lane in range(lanes_of(x)):
        read_target_of_lane(job, i, count, group, lane, &target)
        find_sparse(&sums, x + lane, lanes_of(x), &target, 0, job.n_classes, group.m[lane])
        group.argmax[lane] = <real> sums.argmax
        group.rest[lane] = sums.rest.minus(0, &low)
        numbers.mass[lane] = group.rest[lane] + sums.t_at_argmax
        numbers.cross[lane] = sums.cross.minus(0, &low)


cdef void build_targets_of_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, const real* allowed, real* t
) noexcept nogil:
    """As build_target, for each lane of the tile t."""
    cdef Target[real] target
    cdef double[MAX_LANES] masses
    cdef const real* class_weight = <real*> job.class_weight
    cdef Py_ssize_t n = job.n_classes, lane
    if job.kind == DISTRIBUTIONS:
        lane_masses(t, n, masses)
    else:
        memset(t, 0, n * lanes_of(t) * sizeof(real))
        for lane in range(lanes_of(t)):
            read_target_of_lane(job, i, count, group, lane, &target)
            masses[lane] = add_entries(&target, t + lane, lanes_of(t), n)
    blend_lanes(t, n, job.built_smoothing, masses, allowed, class_weight)


cdef void smooth_lanes(
    LaneGroup[real]* group, const real* x, const Formula* formula, Py_ssize_t n, double* share, RowNumbers* numbers
) noexcept nogil:
    """As smooth_sums, for each lane; the share of each class goes to `share`."""
    cdef double[MAX_LANES] gaps
    cdef Vec[double] cross, rest
    cdef Py_ssize_t i = 0
    lane_gap_sums(x, n, group.m, gaps)
    while i < lanes_of(x):
        cross = load(numbers.cross + i)
        rest = load(group.rest + i)
        store(share + i, smooth_sums(formula[0], <double> n, load(numbers.mass + i), load(&gaps[i]), &cross, &rest))
        store(numbers.cross + i, cross)
        store(group.rest + i, rest)
        i += ROWS_AT_ONCE


cdef inline void take_exponentials(
    LaneGroup[real]* group, real* x, Py_ssize_t n, const NextRows* next_logits, const NextRows* next_grad,
    RowNumbers* numbers
) noexcept nogil:
    """The logits become exponentials; R of each lane is their sum. Meanwhile the next group is prefetched."""
    cdef LanesUnit[real] unit = group.unit
    cdef real[MAX_LANES] taken_off
    cdef Py_ssize_t c
    for c in range(n):
        ask_for(next_logits, c)
        ask_for(next_grad, c)
        store(x + c * lanes_of(x), exp(load_lanes(x + c * lanes_of(x)), unit))
    store(taken_off, select_equal(
        load_lanes(group.argmax), Lanes[real](-1), load_lanes(group.e_m), Lanes[real](0)))
    lane_sums(x, n, group.argmax, &taken_off[0], numbers.R, numbers.R_low)


cdef void find_diagnostics_of_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, const real* x,
    const real* e, Py_ssize_t n, RowNumbers* numbers
) noexcept nogil:
    """As find_diagnostics, for each lane, from logits x and their exponentials e."""
    cdef Lanes[real] m = load_lanes(group.m), argmax = Lanes[real](-1)
    cdef real[MAX_LANES] first_at_m, nothing
    cdef double[MAX_LANES] gaps, R, R_low, logs
    cdef Py_ssize_t c, lane = 0
    for c in range(n - 1, -1, -1):
        argmax = select_equal(load_lanes(x + c * lanes_of(x)), m, Lanes[real](<double> c), argmax)
    store(first_at_m, argmax)
    store(nothing, Lanes[real](0))
    lane_sums(e, n, &first_at_m[0], &nothing[0], R, R_low)
    lane_gaps(x, e, n, group.m, first_at_m, gaps, NULL, NULL)
    while lane < lanes_of(x):
        store(logs + lane, log1p_rest(
            x, load(&R[lane]), load(&R_low[lane]), load(numbers.m_shifted + lane), load(numbers.n0 + lane)))
        lane += ROWS_AT_ONCE
    for lane in range(count):
        if numbers.weight[lane] == 0:
            set_diagnostics(job, i + lane, -1, 0, 0, 0)
        else:
            set_found_diagnostics(
                job, i + lane, <int64_t> first_at_m[lane],
                not is_finite(R[lane]) and has_nan(x + lane, lanes_of(x), n), logs[lane], numbers.m[lane],
                numbers.m[lane] - x[group.label[lane] * lanes_of(x) + lane],
                gaps[lane] / (R[lane] + group.e_m[lane]))


cdef inline double smallest_scale(const real* tag) noexcept nogil:
    """From this size of scale * mass on, the factor scale * mass / S is a normal number.

    A tile has at most 512 classes, so S is below 1024 * unit_size.
    """
    return 1024 * unit_size(tag) * smallest_normal(tag)


cdef void find_pulls(const real* tag, const Formula* formula, double* pull, RowNumbers* numbers) noexcept nogil:
    """What a z-loss adds to the mass of each lane."""
    cdef Py_ssize_t i = 0
    while i < lanes_of(tag):
        store(pull + i, Vec[double](2 * formula.z_loss) * (load(numbers.m + i) + log1p_rest(
            tag, load(numbers.R + i), load(numbers.R_low + i), load(numbers.m_shifted + i), load(numbers.n0 + i))))
        i += ROWS_AT_ONCE


cdef inline bint finish_lanes(
    LaneGroup[real]* group, const real* e, const Formula* formula, double* share, double* scales, bint scales_suffice,
    RowNumbers* numbers
) noexcept nogil:
    """The numbers that make the gradient of the exponentials, as in finish_row.

    False if scale * mass of a row is so large or small that finish_row treats the row specially. `scales_suffice` says
    that the scales alone rule this out.
    """
    cdef Vec[double] zero = Vec[double](0), none = Vec[double](-1), least = Vec[double](-INFINITY), most = zero
    cdef double[MAX_LANES] pull
    cdef Vec[double] R, e_m, mass, rest, scale, size, class_share = zero
    cdef Denominator[real, Vec[double]] whole
    cdef Factors[Vec[double]] factors
    cdef Py_ssize_t i = 0
    if formula.z_loss != 0:
        find_pulls(e, formula, pull, numbers)
    while i < lanes_of(e):
        R = load(numbers.R + i)
        e_m = load_as_double(group.e_m + i)
        mass = load(numbers.mass + i)
        rest = load(group.rest + i)
        scale = load(scales + i)
        if formula.z_loss != 0:
            mass = mass + load(&pull[i])
            rest = rest + load(&pull[i])
        whole = Denominator[real, Vec[double]](R, load(numbers.R_low + i), e_m)
        if formula.smoothing != 0:
            class_share = load(share + i)
        factors = find_factors(e, formula[0], whole, R, mass, rest, class_share, scale)
        if not scales_suffice:
            size = maximum(scale * mass, zero - scale * mass)
            most = maximum(size, most)
            least = maximum(select_equal(size, zero, least, zero - size), least)
        store_rounded(group.factor + i, factors.factor)
        store_rounded(group.minus + i, factors.minus)
        if formula.smoothing != 0:
            store_rounded(group.offset + i, factors.offset)
        # Where R < e_m, the argmax has more than half of the probability.
        store_rounded(group.own_class + i, select_equal(maximum(R, e_m), R, none, load_as_double(group.argmax + i)))
        store_rounded(group.own_grad + i, factors.grad_at_argmax)
        i += ROWS_AT_ONCE
    return scales_suffice or (largest(most) <= largest_scale(e) and largest(least) <= -smallest_scale(e))


cdef inline void take_gradients(
    LaneGroup[real]* group, real* e, const real* t, bint smoothed, bint has_labels, Py_ssize_t n
) noexcept nogil:
    """The exponentials become the gradient; t has the distributions, or is NULL."""
    cdef Gradient[Lanes[real]] gradient
    cdef Lanes[real] own_class = load_lanes(group.own_class), own_grad = load_lanes(group.own_grad), label, g
    cdef Py_ssize_t c, i
    gradient.factor = load_lanes(group.factor)
    gradient.offset = load_lanes(group.offset)
    gradient.minus = load_lanes(group.minus)
    gradient.smoothed = smoothed
    if has_labels:
        # The gradient at the label is set by itself: own_grad if the row is confident and right, else the usual one.
        label = load_lanes(group.label_class)
        g = gradient.minus_target(
            gradient.of(exp(load_lanes(group.label_logit), group.unit)), load_lanes(group.label_amount))
        own_grad = select_equal(own_class, label, own_grad, g)
        own_class = label
    for c in range(n):
        i = c * lanes_of(e)
        g = gradient.of(load_lanes(e + i))
        if t != NULL:
            g = gradient.minus_target(g, load_lanes(t + i))
        store(e + i, select_equal(Lanes[real](<double> c), own_class, own_grad, g))


cdef void subtract_sparse_of_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, real* g
) noexcept nogil:
    """As subtract_sparse, for each lane; then the gradient at its own class is set."""
    cdef Target[real] target
    cdef Gradient[double] gradient
    cdef Py_ssize_t lane
    for lane in range(lanes_of(g)):
        read_target_of_lane(job, i, count, group, lane, &target)
        gradient.minus = group.minus[lane]
        subtract_sparse(&gradient, g + lane, lanes_of(g), job.n_classes, &target, NULL)
        if group.own_class[lane] >= 0:
            g[<Py_ssize_t> group.own_class[lane] * lanes_of(g) + lane] = group.own_grad[lane]


cdef inline bint find_scales(const Job* job, const double* weight, double* scales, const real* tag) noexcept nogil:
    """The scale of each lane's gradient; False if one is too large for the type."""
    cdef Py_ssize_t lane
    for lane in range(lanes_of(tag)):
        scales[lane] = job.scale.mantissa * job.unit
    if not job.has_sample_weight and not job.has_ignored:
        return job.scale.exponent == 0 and fabs(scales[0]) <= largest_scale(tag)
    for lane in range(lanes_of(tag)):
        # Rows of weight 0 are set to zero at the end. Until then they take part with the weight job.unit.
        scales[lane] = job.scale.mantissa * (weight[lane] if weight[lane] != 0 else job.unit)
    return job.scale.exponent == 0 and largest_size(scales, lanes_of(tag)) <= largest_scale(tag)


cdef inline void read_tiles(
    const Job* job, Py_ssize_t i, Py_ssize_t count, real* space, Tiles[real]* tiles
) noexcept nogil:
    """The tiles of `count` rows from i on: logits, and distributions and allowed classes, if there are any."""
    cdef Py_ssize_t n = job.n_classes, size = n * lanes_of(space)
    cdef real* staging = space + job.staging_tile * size
    tiles.x = space
    tiles.t = space + job.target_tile * size if job.target_tile > 0 else NULL
    tiles.slope = space + job.slope_tile * size if job.slope_tile > 0 else NULL
    tiles.kept_logits = space + job.kept_tile * size if job.kept_tile > 0 else NULL
    tiles.staging = staging
    if job.kind == DISTRIBUTIONS:
        read_tile(&job.targets, i, count, n, tiles.t, staging)
    read_tile(&job.logits, i, count, n, tiles.x, staging)
    if job.has_allowed:
        read_tile(&job.allowed, i, count, n, tiles.slope, staging)


cdef inline bint transform_tiles(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, Tiles[real]* tiles
) noexcept nogil:
    """The logits of the softmax, and the targets that are built; False if a logit leaves its range."""
    cdef Py_ssize_t size = job.n_classes * lanes_of(tiles.x)
    cdef const real* logits = tiles.x
    cdef const real* allowed = tiles.slope if job.has_allowed else NULL
    if leaves_range(job, logits, size):
        return False
    if job.builds_target:
        build_targets_of_lanes(job, i, count, group, allowed, tiles.t)
    if job.transforms:
        transform_logits(job.transform, logits, allowed, tiles.x, tiles.slope if job.has_grad else NULL, 0, size)
    return True


cdef inline bint find_targets(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, Tiles[real]* tiles, double* share,
    RowNumbers* numbers
) noexcept nogil:
    """Maximum and target of each lane, smoothed; False if a sum of gaps leaves its range."""
    cdef real* x = tiles.x
    cdef Py_ssize_t n = job.n_classes
    find_m(group, x, n, numbers)
    if tiles.t != NULL:
        find_distributions(group, x, tiles.t, n, numbers)
    elif job.kind == LABELS:
        find_labels(group, x, <real*> job.class_weight, count, numbers)
    else:
        find_sparse_of_lanes(job, i, count, group, x, numbers)
    if job.formula.smoothing != 0:
        smooth_lanes(group, x, &job.formula, n, share, numbers)
    if not (real is double or job.formula.smoothing != 0) or are_finite(numbers.cross, lanes_of(x)):
        return True
    # Either a logit is infinite or NaN, or a sum of gaps overflowed. Only the wide kernel can compute the latter.
    if not are_moderate(x, n * lanes_of(x)):
        return False
    return are_moderate(tiles.t, n * lanes_of(x)) if tiles.t != NULL else (
        job.kind == LABELS and job.class_weight == NULL)


cdef bint visit_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, const real* tag, RowNumbers* numbers
) noexcept nogil:
    """As visit_row_of, for `count` rows from i on, at most as many as there are lanes; all tiles are on the stack.

    False if a row has numbers that only visit_row_of takes. Then no gradient is written: see visit_one_by_one.
    """
    cdef Tile[real] tile
    cdef Tiles[real] tiles
    cdef LaneGroup[real] group
    cdef Py_ssize_t n = job.n_classes, size = n * lanes_of(tag)
    cdef double[MAX_LANES] scales, share
    cdef bint mass_is_1 = (
        job.kind == LABELS and job.class_weight == NULL and job.formula.z_loss == 0 and not job.has_sample_weight
        and not job.has_ignored)
    cdef real* x = tile.space
    cdef NextRows next_logits = NextRows(<char*> x, 0), next_grad = next_logits       # prefetches nothing new
    group.label = label
    read_tiles(job, i, count, x, &tiles)
    if job.has_grad and not find_scales(job, numbers.weight, scales, tag):
        return False
    if not transform_tiles(job, i, count, &group, &tiles):
        return False
    if not find_targets(job, i, count, &group, &tiles, share, numbers):
        return False
    if job.prefetching and i + 2 * count <= job.n_rows:
        next_logits = find_next_rows(&job.logits, i + count, count, n)
        if job.has_grad and not job.streaming:
            next_grad = find_next_rows(&job.grad, i + count, count, n)
    if tiles.kept_logits != NULL:
        memcpy(tiles.kept_logits, x, size * sizeof(real))
    take_exponentials(&group, x, n, &next_logits, &next_grad, numbers)
    if tiles.kept_logits != NULL:
        find_diagnostics_of_lanes(job, i, count, &group, tiles.kept_logits, x, n, numbers)
    if not job.has_grad:
        return True
    if not finish_lanes(
        &group, x, &job.formula, share, scales, mass_is_1 and fabs(scales[0]) >= smallest_scale(tag), numbers
    ):
        return False
    take_gradients(&group, x, tiles.t, job.formula.smoothing != 0, tiles.t == NULL and job.kind == LABELS, n)
    if tiles.t == NULL and job.kind == SPARSE:
        subtract_sparse_of_lanes(job, i, count, &group, x)
    if tiles.slope != NULL:
        multiply_by_slope(x, tiles.slope, size)
    if job.has_sample_weight or job.has_ignored:
        zero_lanes(x, numbers.weight, n)
    write_tile(&job.grad, i, count, n, x, tiles.staging, job.streaming)
    return True


cdef void visit_one_by_one(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, const real* tag, RowNumbers* numbers
) noexcept nogil:
    """Visit `count` rows of the narrow kernel by the wide one, which takes any numbers."""
    cdef Tile[real] scratch
    cdef Py_ssize_t k
    for k in range(count):
        visit_row_of(job, i + k, label + k, scratch.space, 1, numbers, k, False, False)
