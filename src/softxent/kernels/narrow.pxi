# The narrow kernel: as many rows at once as Lanes has lanes, one row to a lane, class by class.
#
# It computes what the wide kernel in wide.pxi computes. For each row the operations and their order are the same, so
# the two agree to the bit, and a call may use either. What the wide kernel adds across lanes is added across classes
# here.
#
# The logits are in a tile. The exponentials overwrite them, and then the gradient. The phases are the functions below,
# in their order; LaneGroup holds what one phase finds for the next. If a number of one row leaves its range, the wide
# kernel takes the whole group.


cdef enum:
    PREFETCHED_CLASSES = 8      # of shorter rows, the CPU prefetches enough by itself (measured)


cdef void find_distributions(
    LaneGroup[real]* group, const real* x, const real* t, Py_ssize_t n, LaneNumbers* numbers
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
        here = select_equal(logits, m, class_in_lanes(x, c), argmax)
        argmax = select_equal(weights, zero, argmax, here)
        at_argmax = select_equal(argmax, class_in_lanes(x, c), weights, at_argmax)
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


cdef void find_sparse_targets(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, SparseRows[real]* rows, const real* x,
    LaneNumbers* numbers
) noexcept nogil:
    """As find_sparse, for each lane; lanes without a row of their own get the target of the last row."""
    rows.count = job.n_entries
    rows.n_classes = job.n_classes
    rows.class_weight = <real*> job.class_weight
    place_lanes(&job.targets, i, count, lanes_of(x), <char**> rows.indices, NULL)
    place_lanes(&job.probs, i, count, lanes_of(x), <char**> rows.probs, NULL)
    find_sparse_of_lanes(group, rows, x, numbers[0])


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


cdef void find_weighted_gaps_of_lanes(
    LaneGroup[real]* group, const real* x, const real* class_weight, Py_ssize_t n, double* gaps, double* w_a,
    LaneNumbers* numbers
) noexcept nogil:
    """As find_weighted_gaps, for each lane; `w_a` gets the weight of the argmax, 0 if there is none."""
    cdef Lanes[real] m = load_lanes(group.m), argmax = Lanes[real](-1)
    cdef real[MAX_LANES] found
    cdef Py_ssize_t c, lane
    lane_weighted_gap_sums(x, class_weight, n, group.m, gaps)
    for c in range(n - 1, -1, -1):
        argmax = select_equal(load_lanes(x + c * lanes_of(x)), m, class_in_lanes(x, c), argmax)
    store(found, argmax)
    for lane in range(lanes_of(x)):
        if group.argmax[lane] < 0:
            group.argmax[lane], group.rest[lane] = found[lane], numbers.mass[lane]
        w_a[lane] = class_weight[<Py_ssize_t> group.argmax[lane]] if group.argmax[lane] >= 0 else 0


cdef void smooth_lanes(
    LaneGroup[real]* group, const Formula* formula, Py_ssize_t n, const double* gaps, const double* w_a, double* share,
    LaneNumbers* numbers
) noexcept nogil:
    """As smooth_sums, for each lane; the share of each class goes to `share`. Without weights, w_a is not read."""
    cdef const real* tag = group.m
    cdef Vec[double] mass, cross, rest, of_argmax = Vec[double](0)
    cdef Py_ssize_t i = 0
    while i < lanes_of(tag):
        mass, cross, rest = load(numbers.mass + i), load(numbers.cross + i), load(group.rest + i)
        if formula.weighs:
            of_argmax = load(w_a + i)
        store(share + i, smooth_sums(formula[0], <double> n, of_argmax, load(gaps + i), &mass, &cross, &rest))
        store(numbers.mass + i, mass)
        store(numbers.cross + i, cross)
        store(group.rest + i, rest)
        i += ROWS_AT_ONCE


cdef inline bint find_scales(
    const Job* job, const Scale* scale, const double* weight, double* scales, const real* tag
) noexcept nogil:
    """`scale` with the weight of each lane; False if that is too large for the type."""
    cdef Py_ssize_t lane
    for lane in range(lanes_of(tag)):
        scales[lane] = scale.mantissa * job.unit
    if not job.has_sample_weight and not job.has_ignored:
        return scale.exponent == 0 and fabs(scales[0]) <= largest_scale(tag)
    for lane in range(lanes_of(tag)):
        # Rows of weight 0 are set to zero at the end. Until then they take part with the weight job.unit.
        scales[lane] = scale.mantissa * (weight[lane] if weight[lane] != 0 else job.unit)
    return scale.exponent == 0 and largest_size(scales, lanes_of(tag)) <= largest_scale(tag)


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
    tiles.vectors = tiles.hess = space + job.second_tile * size if job.second_tile > 0 else NULL
    tiles.staging = staging
    if job.kind == DISTRIBUTIONS:
        read_tile(&job.targets, i, count, n, tiles.t, staging)
    read_tile(&job.logits, i, count, n, tiles.x, staging)
    if job.has_allowed:
        read_tile(&job.allowed, i, count, n, tiles.slope, staging)
    if job.result == PRODUCT:
        read_tile(&job.vectors, i, count, n, tiles.vectors, staging)


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
    if job.masks_target:
        multiply_by_slope(tiles.t, allowed, size)
    if job.transforms:
        make_logits(job.transform, logits, allowed, tiles.x, tiles.slope if job.has_slope else NULL, 0, size)
    return True


cdef inline bint find_targets(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, Tiles[real]* tiles, double* share,
    SparseRows[real]* sparse, LaneNumbers* numbers
) noexcept nogil:
    """Maximum and target of each lane, smoothed; False if a sum of gaps leaves its range."""
    cdef real* x = tiles.x
    cdef Py_ssize_t n = job.n_classes
    cdef double[MAX_LANES] gaps, w_a
    find_m(group, x, n, numbers[0])
    if job.result == PRODUCT and job.kind != NO_TARGET:
        place_tops(group, x, n, group.top)
    if tiles.t != NULL:
        find_distributions(group, x, tiles.t, n, numbers)
    elif job.kind == LABELS:
        find_label_logits(group, x, n)
        find_labels(group, <real*> job.class_weight, numbers[0])
    elif job.kind == NO_TARGET:
        find_no_targets(job, group, x, numbers)
        return True
    else:
        find_sparse_targets(job, i, count, group, sparse, x, numbers)
    if job.formula.weighs:
        find_weighted_gaps_of_lanes(group, x, <real*> job.class_weight, n, gaps, w_a, numbers)
    elif job.formula.smoothing != 0:
        lane_gap_sums(x, n, group.m, gaps)
    if job.formula.smoothing != 0:
        smooth_lanes(group, &job.formula, n, gaps, w_a, share, numbers)
    if not (real is double or job.formula.smoothing != 0) or are_finite(numbers.cross, lanes_of(x)):
        return True
    # Either a logit is infinite or NaN, or a sum of gaps overflowed. Only the wide kernel can compute the latter.
    if not are_moderate(x, n * lanes_of(x)):
        return False
    return are_moderate(tiles.t, n * lanes_of(x)) if tiles.t != NULL else (
        job.kind == LABELS and job.class_weight == NULL)


cdef bint visit_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, const real* tag, LaneNumbers* numbers
) noexcept nogil:
    """As visit_row_of, for `count` rows from i on, at most as many as there are lanes; all tiles are on the stack.

    False if a row has numbers that only visit_row_of takes. Then no gradient is written: see visit_one_by_one.
    """
    cdef Tile[real] tile
    cdef Tiles[real] tiles
    cdef LaneGroup[real] group
    cdef SparseRows[real] sparse
    cdef Py_ssize_t n = job.n_classes, size = n * lanes_of(tag)
    cdef double[MAX_LANES] scales, share, pull
    cdef char* at[MAX_LANES]
    cdef bint staged, mass_is_1 = (
        job.kind == LABELS and job.class_weight == NULL and job.formula.z_loss == 0 and not job.has_sample_weight
        and not job.has_ignored)
    cdef real* x = tile.space
    cdef NextRows next_logits = NextRows(<char*> x, 0)          # prefetches nothing new
    cdef NextRows next_grad = next_logits, next_others = next_logits
    group.label = label
    read_tiles(job, i, count, x, &tiles)
    if job.has_grad and (job.result == GRADIENT or job.result == HESSIAN):
        if not find_scales(job, &job.scale, numbers.weight, scales, tag):
            return False
    if not transform_tiles(job, i, count, &group, &tiles):
        return False
    if not find_targets(job, i, count, &group, &tiles, share, &sparse, numbers):
        return False
    if job.prefetching and (n >= PREFETCHED_CLASSES or not job.logits.packed) and i + 2 * count <= job.n_rows:
        next_logits = find_next_rows(&job.logits, i + count, count, n)
        if job.has_grad and not job.streaming:
            next_grad = find_next_rows(&job.grad, i + count, count, n)
        if job.second_tile > 0:
            next_others = find_next_rows(
                &job.vectors if job.result == PRODUCT else &job.hess, i + count, count, n)
    if tiles.kept_logits != NULL:
        memcpy(tiles.kept_logits, x, size * sizeof(real))
    if not job.has_probs and job.second_tile > 0:
        take_exponentials_of_lanes(&group, x, n, numbers[0], next_logits, next_grad, next_others)
    elif not job.has_probs:
        take_exponentials_of_lanes(&group, x, n, numbers[0], next_logits, next_grad)
    if job.diagnostics.argmax != NULL:
        find_diagnostics_of_lanes(job, &group, <const real*> tiles.kept_logits, <const real*> x, numbers)
    if job.result != GRADIENT and job.result != HESSIAN:
        return take_lane_results(job, i, count, &group, &tiles, x, numbers)
    if not job.has_grad:
        return True
    if job.formula.z_loss != 0:
        find_pulls(x, job.formula, numbers[0], pull)
    if not finish_lanes(
        &group, job.formula, share, pull, scales, mass_is_1 and fabs(scales[0]) >= smallest_scale(tag), numbers[0]
    ):
        return False
    if job.result == HESSIAN and not take_lane_hessians(job, i, count, &group, &tiles, x, numbers):
        return False
    if job.formula.weighs:
        take_weighted_gradients(group, x, <real*> job.class_weight, n)
    elif tiles.t == NULL and job.kind == LABELS:
        find_grad_at_label(&group)
        if goes_to_rows(job, &job.grad, n, tag):
            staged = place_results(&job.grad, i, count, n, tiles.staging, job.streaming, at)
            write_gradients(group, x, n, <real**> at)
            stream_results(&job.grad, i, count, n, <const real*> tiles.staging, staged)
            return True
        take_gradients(group, x, tiles.t, n)
    else:
        take_gradients(group, x, tiles.t, n)
    if tiles.t == NULL and job.kind == SPARSE:
        subtract_sparse_of_lanes(group, &sparse, x)
    if tiles.slope != NULL:
        multiply_by_slope(x, tiles.slope, size)
    if job.has_sample_weight or job.has_ignored:
        zero_lanes(x, numbers.weight, n)
    write_tile(&job.grad, i, count, n, x, tiles.staging, job.streaming)
    return True


cdef void visit_one_by_one(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, const real* tag, RowNumbers* numbers, int k
) noexcept nogil:
    """Visit a group of rows by the wide kernel, which takes any numbers."""
    cdef Tile[real] scratch
    cdef Py_ssize_t lane
    for lane in range(count):
        visit_row_of(job, i + lane, label + lane, scratch.space, 1, numbers, k + lane, False, False)
