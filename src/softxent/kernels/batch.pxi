# A whole call: its rows, in blocks that are shared out over the threads, and the sum of their losses.
#
# Which rows make a block depends on the shape alone, and block sums are added in order, so the result does not depend
# on the number of threads. Where there are few long rows, and not as many for each thread, the threads share each row.

cdef enum:
    MAX_BLOCKS = 512
    LOGITS_PER_THREAD = 16384   # less work than this is not worth waking a thread for (measured)
    LANE_BYTES = 128            # what a class takes in the narrow kernel's tile
    NARROW_BYTES = 768          # in rows of up to as many bytes the narrow kernel is the faster one (measured),
    FEW_ROWS = 8                # if there are not fewer rows
    PREFETCH_FROM = 262144      # logits: where they no longer stay in a cache near the core
    STREAM_FROM = 4194304       # logits: where a gradient is too large for the caches
    PREFETCHED_ROW = 65536      # classes: a row of more would drive out the one that is worked on


cdef enum:                      # What the targets are:
    LABELS                      # the class of each row,
    DISTRIBUTIONS               # an amount for every class,
    AMOUNTS                     # or amounts for some


cdef struct Job:
    Rows logits
    int kind                 # of the targets
    Rows targets             # labels, distributions, or the classes that there are amounts for
    Rows amounts
    Py_ssize_t n_amounts     # of each row: one for a label, none for a distribution
    Rows grad
    Rows weights             # of the rows
    Rows allowed             # classes: those where it is not 0
    void* class_weights      # as many as there are classes, of the type computed in, or NULL
    bint has_grad
    bint has_weights
    bint has_passed_over     # rows with the label `passed_over` do not count, whatever their logits hold
    bint has_allowed
    int64_t passed_over
    Formula formula
    double smoothing         # what the targets are blended with, formula.smoothing being 0 then
    Transform transform
    bint transforming        # the logits of the softmax are made of those given,
    bint sloping             # and not all with the same derivative
    bint may_leave_range     # a finite logit may become infinite
    bint blending            # targets are made to distributions that weights, smoothing and allowed classes are part of
    bint by_lanes            # the narrow kernel takes the rows, as many at once as it has lanes
    bint by_stretches        # all threads work on one row after the other
    bint streaming           # the gradient is stored past the caches; wide rows keep their exponentials in the scratch
    bint prefetching         # logits are asked for before they are needed
    Py_ssize_t n_rows
    Py_ssize_t n_classes
    Py_ssize_t rows_per_block
    Py_ssize_t scratch_per_thread
    double unit              # that the weights of rows are multiplied by, so that their sums are numbers
    double scale             # of the gradient, before the weight of the row
    float* losses32          # at most one of the two is given
    double* losses64
    bint has_products
    Products products


cdef inline LabelRange label_range(const Job* job) noexcept nogil:
    cdef LabelRange labels
    labels.n_classes = job.n_classes
    labels.passed_over = &job.passed_over if job.has_passed_over else NULL
    return labels


cdef inline void read_target(
    const Job* job, Py_ssize_t i, const int64_t* label, const storage* one, Target[storage]* target
) noexcept nogil:
    """The target of row i, whose label and its amount stand there; without its distribution, if it is one."""
    target.distribution = NULL
    target.classes = label
    target.amounts = one
    target.count = job.n_amounts
    target.class_weights = <storage*> job.class_weights
    if job.kind == AMOUNTS:
        target.classes = <int64_t*> row(&job.targets, i)
        target.amounts = <storage*> row(&job.amounts, i)


cdef double target_mass(const Job* job, Py_ssize_t i, const storage* one) noexcept nogil:
    """The sum of a target that is no label, multiplied by the weights of the classes."""
    cdef Target[storage] target
    cdef Carried[double] total = Carried[double](0, 0)
    cdef Sum[storage] sum
    cdef storage[PIECE] piece
    cdef double rounded
    cdef Py_ssize_t k, start = 0, count
    read_target(job, i, NULL, one, &target)
    if job.kind == AMOUNTS:
        for k in range(target.count):
            start = target.classes[k]
            total.add(target.amount(k, start) if 0 <= start < job.n_classes else 0)
        return total.less(0, &rounded)
    while start < job.n_classes:
        count = min(PIECE, job.n_classes - start)
        read_row(&piece[0], row(&job.targets, i) + start * job.targets.class_stride, &job.targets, count)
        k = 0
        while k < count:
            sum.add(load_first(&piece[k], min(vec_lanes(one), count - k), 0)
                    * load_first(target.class_weights + start + k, min(vec_lanes(one), count - k), 0))
            k += vec_lanes(one)
        start += count
    return sum.value().less(0, &rounded)


cdef inline void begin_rows(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, double* weight
) noexcept nogil:
    """Labels and weights of `count` rows from i on: 0 for rows to pass over; 1 at the places after the last row."""
    cdef LabelRange labels = label_range(job)
    cdef Py_ssize_t k
    for k in range(MAX_LANES):
        weight[k] = job.unit
    if job.has_weights:
        read_numbers(&job.weights, i, count, weight)
        if job.unit != 1:
            for k in range(count):
                weight[k] *= job.unit
    if job.kind == LABELS:
        # Checked before, but another thread may have changed it since: then the result is wrong, not the memory.
        read_labels(&job.targets, i, count, &labels, label)
    if job.has_passed_over:
        for k in range(count):
            if label[k] < 0:
                label[k] = 0
                weight[k] = 0


cdef double total_weight(const Job* job, const storage* one) noexcept nogil:
    """What the mean divides by; a row of weight 0 adds nothing, even where its class has no finite weight."""
    cdef Sum[double] total
    cdef double[MAX_LANES] weight
    cdef int64_t[MAX_LANES] label
    cdef Py_ssize_t i = 0, count, k
    cdef double rounded
    if not job.has_weights and not job.has_passed_over and job.class_weights == NULL:
        return job.n_rows * job.unit
    while i < job.n_rows:
        count = min(job.n_rows - i, MAX_LANES)
        begin_rows(job, i, count, label, weight)
        if job.class_weights != NULL:
            for k in range(count):
                if weight[k] != 0:
                    weight[k] *= (
                        (<storage*> job.class_weights)[label[k]] if job.kind == LABELS
                        else target_mass(job, i + k, one))
        k = 0
        while k < count:
            total.add(load_first(&weight[k], min(count - k, ROWS_AT_ONCE), 0))
            k += ROWS_AT_ONCE
        i += count
    return total.value().less(0, &rounded)


cdef void share_row(
    const storage* x, storage* e, const Target[storage]* target, const Formula* formula, storage* g, Py_ssize_t n,
    double scale, bint streaming, int n_threads, const FarRow* far, RowNumbers* rows, int k
) noexcept nogil:
    """visit_row, its stretches shared out over the threads."""
    cdef Py_ssize_t length = stretch_length(n), n_stretches = (n + length - 1) // length, i
    cdef double[MAX_STRETCHES] tops
    cdef Part parts[MAX_STRETCHES]
    cdef Part row
    cdef Scaling scaling
    cdef RowUnit[storage] unit
    cdef double m = -INFINITY, e_top
    cdef const storage* t = target.distribution
    for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
        tops[i] = row_max(x + i * length, min(length, n - i * length))
    for i in range(n_stretches):
        m = max(m, tops[i])
    unit = RowUnit[storage](<storage> m)
    e_top = first(exp(Vec[storage](m), unit))
    for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
        visit_stretch(
            parts + i, x, e, target, formula, i * length, min(length, n - i * length), m, unit, 0)
    row.clear()
    for i in range(n_stretches):
        add_part(&row, parts + i, i * length, e_top)
    if far != NULL:
        row.cross, row.gaps, row.far = far.gaps.cross, far.gaps.gaps, True
    scaling = finish_row(&row, e, formula, n, m, unit, e_top, scale, far, rows, k)
    if g != NULL:
        for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
            scale_stretch(
                &scaling, e + i * length, t + i * length if t != NULL else NULL, g + i * length,
                min(length, n - i * length), streaming)
            if streaming:
                fence_streams()
        set_special(&scaling, target, g, n)


cdef bint leaves_range(const Job* job, const storage* x, double size) noexcept nogil:
    """Whether a finite logit, of which `size` is the largest absolute value, becomes infinite."""
    return is_finite(size) and not size / job.transform.temperature <= largest_number(x)


cdef void bring_back(
    const Job* job, storage* x, storage* slope, const Target[storage]* target, int64_t label, FarRow* far
) noexcept nogil:
    """transform_logits of a row of which some leave the range: x becomes logits of the same softmax, `far` the rest.

    If the maximum leaves it, then two logits that differ do so by more than any exponential can tell.
    """
    cdef storage temperature = <storage> job.transform.temperature, m, z
    cdef double step = job.transform.temperature / FAR_STEP
    cdef Py_ssize_t n = job.n_classes, c
    for c in range(n if job.has_allowed else 0):
        if slope[c] == 0:
            x[c] = -INFINITY
    m = <storage> row_max(x, n)
    find_far_gaps(&far.gaps, x, target, &job.formula, 0, n, m, job.transform.temperature)
    far.m = m / job.transform.temperature
    far.far_m = m * FAR_STEP / step
    far.label_gap = (m * FAR_STEP - x[label] * FAR_STEP) / step / FAR_STEP / FAR_STEP
    for c in range(n):
        z = x[c] / temperature
        if not is_finite(m / temperature) and is_finite(x[c]):
            z = 0 if x[c] == m else -largest_number(x)
        elif not is_finite(z) and is_finite(x[c]):
            z = -largest_number(x)
        x[c] = z
        if job.has_allowed:
            slope[c] = slope[c] != 0


cdef void read_stretches(const Job* job, Py_ssize_t i, int n_threads, storage* x) noexcept nogil:
    """The logits of row i as they are."""
    cdef Py_ssize_t n = job.n_classes, length = stretch_length(n), n_stretches = (n + length - 1) // length, k, start
    cdef char* source = row(&job.logits, i)
    if n_threads == 1:
        read_row(x, source, &job.logits, n)
    else:
        for k in prange(n_stretches, num_threads=n_threads, schedule="static"):
            start = k * length
            read_row(x + start, source + start * job.logits.class_stride, &job.logits, min(length, n - start))


cdef void transform_stretches(const Job* job, int n_threads, storage* x, storage* slope) noexcept nogil:
    cdef Py_ssize_t n = job.n_classes, length = stretch_length(n), n_stretches = (n + length - 1) // length, k, start
    if n_threads == 1:
        transform_logits(&job.transform, x, slope if job.sloping else NULL, job.has_allowed, n)
    else:
        for k in prange(n_stretches, num_threads=n_threads, schedule="static"):
            start = k * length
            transform_logits(
                &job.transform, x + start, slope + start if job.sloping else NULL, job.has_allowed,
                min(length, n - start))


cdef void pass_over(const Job* job, Py_ssize_t i, RowNumbers* rows, int k) noexcept nogil:
    """The numbers and the gradient of a row of weight 0; its logits are not read."""
    rows.R[k] = rows.R_low[k] = rows.m[k] = rows.over[k] = rows.n0[k] = rows.mass[k] = rows.cross[k] = 0
    if job.has_grad:
        zero_row(&job.grad, i, job.n_classes)
    if job.has_products:
        set_no_products(&job.products, i)


cdef inline bint visit_row_of(
    const Job* job, Py_ssize_t i, const int64_t* label, storage* scratch, int n_threads, RowNumbers* rows, int k,
    bint next_counts, bint top_known
) noexcept nogil:
    """Visit row i, which is row k of its group, whose label, if it has one, and weight are known.

    `top_known` tells whether its maximum is, too; what is returned, whether that of the group's next row now is. What
    cannot be loaded or stored as it is goes through `scratch`: a row of logits, a distribution, and slopes.
    """
    cdef Py_ssize_t n = job.n_classes, ahead = 0
    cdef storage one = 1
    cdef Target[storage] target
    cdef FarRow far_row
    cdef const FarRow* far = NULL
    cdef double size
    cdef storage* x = <storage*> row(&job.logits, i)
    cdef storage* t = scratch + n
    cdef storage* slope = scratch + 2 * n
    cdef storage* g = NULL
    cdef storage* e = NULL
    cdef storage* following = NULL
    if rows.weight[k] == 0:
        pass_over(job, i, rows, k)
        return False
    read_target(job, i, label, &one, &target)
    if job.has_grad:
        g = <storage*> row(&job.grad, i) if job.grad.direct else scratch
        e = scratch if job.streaming else g
    if job.has_allowed:
        read_row(slope, row(&job.allowed, i), &job.allowed, n)
    if job.kind == DISTRIBUTIONS:
        if job.targets.direct and not job.blending:
            t = <storage*> row(&job.targets, i)
        else:
            read_row(t, row(&job.targets, i), &job.targets, n)
        target.distribution = t
    if job.blending:
        blend_target(&target, slope if job.has_allowed else NULL, job.smoothing, t, 1, n)
        target.distribution = t
        target.count = 0
    if not job.logits.direct or job.transforming:
        x = scratch if e == NULL else e
        read_stretches(job, i, n_threads if job.by_stretches else 1, x)
        if job.may_leave_range:
            rows.m[k] = row_range(x, n, &size)
            if leaves_range(job, x, size):
                bring_back(job, x, slope, &target, label[0] if job.kind == LABELS else 0, &far_row)
                far = &far_row
            elif not job.has_allowed:
                rows.m[k] = <storage> rows.m[k] / <storage> job.transform.temperature
                top_known = True
        if job.transforming and far == NULL:
            transform_stretches(job, n_threads if job.by_stretches else 1, x, slope)
    else:
        if job.prefetching and n <= PREFETCHED_ROW and i + 1 < job.n_rows:
            ahead = <storage*> row(&job.logits, i + 1) - x
        if next_counts and job.has_grad and n <= STRETCH:
            following = <storage*> row(&job.logits, i + 1)
    if job.by_stretches:
        share_row(x, e, &target, &job.formula, g, n, job.scale, job.streaming, n_threads, far, rows, k)
    else:
        if not top_known:
            rows.m[k] = row_max(x, n)
        visit_row(x, e, &target, &job.formula, g, n, job.scale, job.streaming, ahead, following, far, rows, k)
    if job.has_products:
        find_products(&job.products, i, x, label[0], n, far, rows, k)
    if job.has_grad and job.sloping:
        multiply_by_slope(g, slope, n)
    if job.has_grad and not job.grad.direct:
        write_row(row(&job.grad, i), g, &job.grad, n)
    return following != NULL


cdef bint place_lanes(
    const Rows* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n_lanes, char** at, char* spare
) noexcept nogil:
    """Where the rows of the lanes start: `count` from i on, and `spare` for the other lanes, or the last if it is NULL.

    True if all those rows are rows.step apart.
    """
    cdef Py_ssize_t lane = 0, run, k
    cdef char* start
    while lane < count:
        start = row(rows, i + lane)
        run = run_from(rows, i + lane, count - lane)
        for k in range(run):
            at[lane + k] = start + k * rows.step
        lane += run
    for lane in range(count, n_lanes):
        at[lane] = at[count - 1] if spare == NULL else spare
    return run == count


cdef void read_tile(
    const Rows* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, storage* tile, storage* staging
) noexcept nogil:
    """Rows to lanes, `count` of them from i on; the other lanes hold zeros, or the last row again."""
    cdef char* at[MAX_LANES]
    cdef Py_ssize_t lane, c
    cdef bint even = place_lanes(rows, i, count, lanes_of(tile), at, NULL)
    if rows.direct and n >= COLUMNS:
        rows_to_lanes(<storage**> at, n, tile)
    elif rows.typed and even and rows.step == sizeof(storage):
        for c in range(n):
            store(tile + c * lanes_of(tile), load_lanes_first(<storage*> (at[0] + c * rows.class_stride), count, 0))
    elif rows.typed:
        for c in range(n):
            for lane in range(lanes_of(tile)):
                tile[c * lanes_of(tile) + lane] = (<storage*> (at[lane] + c * rows.class_stride))[0]
    elif storage is float and rows.halves and n >= COLUMNS:
        if even and rows.step == n * rows.class_stride:
            rows.element.read_row(at[0], staging, count * n)
        else:
            for lane in range(count):
                rows.element.read_row(at[lane], staging + lane * n, n)
        for lane in range(lanes_of(tile)):
            at[lane] = <char*> (staging + min(lane, count - 1) * n)
        rows_to_lanes(<storage**> at, n, tile)
    else:
        for lane in range(count):
            read_row(staging, at[lane], rows, n)
            for c in range(n):
                tile[c * lanes_of(tile) + lane] = staging[c]
        for c in range(n):
            for lane in range(count, lanes_of(tile)):
                tile[c * lanes_of(tile) + lane] = tile[c * lanes_of(tile) + count - 1]


cdef void write_tile(
    const Rows* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, const storage* tile, storage* staging,
    bint streaming
) noexcept nogil:
    """Lanes to rows."""
    cdef Lanes[storage] column
    cdef char* at[MAX_LANES]
    cdef char* staged[MAX_LANES]
    cdef Py_ssize_t lane, c
    cdef bint even = place_lanes(rows, i, count, lanes_of(tile), at, <char*> staging)
    if rows.direct and n >= COLUMNS:
        lanes_to_rows(tile, n, <storage**> at)
    elif rows.typed and even and rows.step == sizeof(storage):
        for c in range(n):
            column = load_lanes(tile + c * lanes_of(tile))
            if streaming and count == lanes_of(tile) and to_line(<storage*> at[0]) == 0:
                stream(<storage*> (at[0] + c * rows.class_stride), column)
            else:
                store_first(<storage*> (at[0] + c * rows.class_stride), count, column)
    elif rows.typed:
        for c in range(n):
            for lane in range(count):
                (<storage*> (at[lane] + c * rows.class_stride))[0] = tile[c * lanes_of(tile) + lane]
    elif storage is float and rows.halves and n >= COLUMNS:
        for lane in range(lanes_of(tile)):
            staged[lane] = <char*> (staging + lane * n)
        lanes_to_rows(tile, n, <storage**> staged)
        if even and rows.step == n * rows.class_stride:
            rows.element.write_row(at[0], staging, count * n)
        else:
            for lane in range(count):
                rows.element.write_row(at[lane], staging + lane * n, n)
    else:
        for lane in range(count):
            for c in range(n):
                rows.element.write(at[lane] + c * rows.class_stride, tile[c * lanes_of(tile) + lane])


cdef Ahead look_ahead(const Rows* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n) noexcept nogil:
    """Where `count` rows from i on are; a step of 0 if neither they nor the elements of a class are close together."""
    cdef Py_ssize_t size = n * rows.class_stride
    cdef Ahead ahead = Ahead(row(rows, i), 0)
    if rows.packed and rows.n_axes == 1 and size <= rows.step <= size + 64:
        ahead.step = count * rows.step // n
    elif rows.typed and 0 < rows.step * count <= LANE_BYTES:
        ahead.step = rows.class_stride
    return ahead


cdef void zero_lanes(storage* tile, const double* weight, Py_ssize_t n) noexcept nogil:
    """Zeros for the lanes that have the weight 0."""
    cdef storage[MAX_LANES] counts
    cdef Lanes[storage] zero = Lanes[storage](0)
    cdef Py_ssize_t lane, c
    for lane in range(lanes_of(tile)):
        counts[lane] = weight[lane] != 0
    for c in range(n):
        store(tile + c * lanes_of(tile), select_equal(
            load_lanes(&counts[0]), zero, zero, load_lanes(tile + c * lanes_of(tile))))


cdef void read_target_of_lane(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[storage]* group, Py_ssize_t lane, Target[storage]* target
) noexcept nogil:
    """read_target of the row in a lane; lanes without a row of their own have the target of the last row."""
    if lane >= count:
        group.label[lane] = group.label[count - 1]
    group.amount[lane] = 1
    read_target(job, i + min(lane, count - 1), group.label + lane, group.amount + lane, target)


cdef void blend_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[storage]* group, const storage* allowed, storage* t
) noexcept nogil:
    """blend_target in each lane of a tile."""
    cdef Target[storage] target
    cdef Py_ssize_t lane
    for lane in range(lanes_of(t)):
        read_target_of_lane(job, i, count, group, lane, &target)
        target.distribution = t if job.kind == DISTRIBUTIONS else NULL
        blend_target(
            &target, allowed + lane if job.has_allowed else NULL, job.smoothing, t + lane, lanes_of(t), job.n_classes)


cdef void find_amounts_of_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[storage]* group, const storage* x, RowNumbers* rows
) noexcept nogil:
    """find_amounts in each lane."""
    cdef Target[storage] target
    cdef Py_ssize_t lane
    cdef Part part
    cdef double low
    for lane in range(lanes_of(x)):
        read_target_of_lane(job, i, count, group, lane, &target)
        find_amounts(&part, x + lane, lanes_of(x), &target, 0, job.n_classes, group.m[lane])
        group.top[lane] = <storage> part.top
        group.rest[lane] = part.rest.less(0, &low)
        rows.mass[lane] = group.rest[lane] + part.at_top
        rows.cross[lane] = part.cross.less(0, &low)


cdef void take_amounts_of_lanes(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[storage]* group, storage* g
) noexcept nogil:
    """set_special in each lane."""
    cdef Target[storage] target
    cdef Py_ssize_t lane
    for lane in range(lanes_of(g)):
        read_target_of_lane(job, i, count, group, lane, &target)
        take_amounts(g + lane, lanes_of(g), job.n_classes, &target, group.minus[lane])
        if group.special[lane] >= 0:
            g[<Py_ssize_t> group.special[lane] * lanes_of(g) + lane] = group.value[lane]


cdef bint visit_lanes_of(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, const storage* tag, RowNumbers* rows
) noexcept nogil:
    """Visit `count` rows from i on, at most as many as there are lanes, in tiles on the stack; as visit_row_of.

    False, and no gradient is written, if one of them has numbers that only visit_row_of takes: see visit_one_by_one.
    """
    cdef Tile[storage] tile
    cdef LaneGroup[storage] group
    cdef Py_ssize_t n = job.n_classes, size = n * lanes_of(tag), lane
    cdef double[MAX_LANES] scales
    cdef double reach
    cdef storage* x = tile.space
    cdef storage* t = NULL
    cdef storage* slope = NULL
    cdef storage* logits = NULL
    cdef Ahead next_logits = Ahead(<char*> x, 0), next_grad = next_logits       # which is in the cache already
    cdef storage* staging = x + size
    if job.kind == DISTRIBUTIONS or job.blending:
        t = staging
        staging += size
    if job.sloping:
        slope = staging
        staging += size
    if job.has_products:
        logits = staging
        staging += size
    if job.kind == DISTRIBUTIONS:
        read_tile(&job.targets, i, count, n, t, staging)
    read_tile(&job.logits, i, count, n, x, staging)
    if job.has_allowed:
        read_tile(&job.allowed, i, count, n, slope, staging)
    group.label = label
    for lane in range(lanes_of(tag)):
        scales[lane] = job.scale * job.unit
    if job.has_weights or job.has_passed_over:
        for lane in range(lanes_of(tag)):
            # Rows of weight 0 get their zeros in the end; a scale of 0 would pass for a target of next to no mass.
            scales[lane] = job.scale * (rows.weight[lane] if rows.weight[lane] != 0 else job.unit)
    if job.has_grad and largest_size(scales, lanes_of(tag)) > largest_scale(tag):
        return False
    if job.may_leave_range:
        row_range(x, size, &reach)
        if leaves_range(job, x, reach):
            return False
    if job.blending:
        blend_lanes(job, i, count, &group, slope, t)
    if job.transforming:
        transform_logits(&job.transform, x, slope, job.has_allowed, size)
    find_top(&group, x, n, rows)
    if t != NULL:
        find_distributions(&group, x, t, n, rows)
    elif job.kind == LABELS:
        find_labels(&group, x, <storage*> job.class_weights, count, rows)
    else:
        find_amounts_of_lanes(job, i, count, &group, x, rows)
    if job.formula.smoothing != 0:
        smooth(&group, x, &job.formula, n, rows)
    if (storage is double or job.formula.smoothing != 0) and largest_size(rows.cross, lanes_of(tag)) == INFINITY:
        return False
    if job.prefetching and i + 2 * count <= job.n_rows:
        next_logits = look_ahead(&job.logits, i + count, count, n)
        if job.has_grad and not job.streaming:
            next_grad = look_ahead(&job.grad, i + count, count, n)
    if job.has_products:
        memcpy(logits, x, size * sizeof(storage))
    take_exponentials(&group, x, n, &next_logits, &next_grad, rows)
    if job.has_products:
        find_products_of_lanes(&job.products, i, count, &group, logits, x, n, rows)
    if job.has_grad:
        if not find_factors(&group, x, &job.formula, n, scales, t == NULL and job.kind == LABELS, rows):
            return False
        take_gradients(&group, x, t, job.formula.smoothing != 0, n)
        if t == NULL and job.kind == AMOUNTS:
            take_amounts_of_lanes(job, i, count, &group, x)
        if job.sloping:
            multiply_by_slope(x, slope, size)
        if job.has_weights or job.has_passed_over:
            zero_lanes(x, rows.weight, n)
        write_tile(&job.grad, i, count, n, x, staging, job.streaming)
    return True


cdef void visit_one_by_one(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, const storage* tag, RowNumbers* rows
) noexcept nogil:
    """Visit `count` rows of the narrow kernel's by the wide one, which takes whatever numbers may stand there."""
    cdef Tile[storage] scratch
    cdef Py_ssize_t k
    for k in range(count):
        visit_row_of(job, i + k, label + k, scratch.space, 1, rows, k, False, False)


cdef void add_far_losses(
    const Job* job, Py_ssize_t count, const storage* tag, const RowNumbers* rows, Carried[double]* far_sum
) noexcept nogil:
    cdef double[MAX_LANES + ROWS_AT_ONCE] losses
    cdef RowNumbers far = rows[0]
    cdef Py_ssize_t k
    for k in range(count):
        far.weight[k] *= FAR_STEP
    row_losses(tag, far, count, job.formula.z_loss, losses)
    for k in range(count):
        far_sum.add(losses[k])


cdef void add_losses(
    const Job* job, Py_ssize_t i, Py_ssize_t count, Py_ssize_t before, const storage* tag, const RowNumbers* rows,
    Sum[double]* sum, Carried[double]* far_sum
) noexcept nogil:
    """The losses of the rows from i on, of which as many come `before` in their block.

    Where they do not fit into the sum, they go to `far_sum`, in the unit FAR_STEP.
    """
    # Row by row in turn to the lanes of the sum, however they come in groups.
    cdef double[MAX_LANES + 2 * ROWS_AT_ONCE] losses
    cdef Py_ssize_t first = before % ROWS_AT_ONCE, k
    for k in range(first):
        losses[k] = 0
    cdef Sum[double] sum_before = sum[0]
    row_losses(tag, rows[0], count, job.formula.z_loss, &losses[first])
    k = 0
    while k < first + count:
        sum.add(load_first(&losses[k], min(first + count - k, ROWS_AT_ONCE), 0))
        k += ROWS_AT_ONCE
    if not has_room(sum[0]):
        sum[0] = sum_before
        add_far_losses(job, count, tag, rows, far_sum)
    if job.losses32 != NULL:
        for k in range(count):
            job.losses32[i + k] = <float> losses[first + k]
    elif job.losses64 != NULL:
        for k in range(count):
            job.losses64[i + k] = losses[first + k]


cdef struct Total:
    # The losses of a block, in two sums: see add_losses.
    Carried[double] sum
    Carried[double] far_sum


cdef void visit_block(
    const Job* job, Py_ssize_t block, storage* scratch, int n_threads, Total* total
) noexcept nogil:
    cdef Py_ssize_t i = block * job.rows_per_block
    cdef Py_ssize_t stop = min(i + job.rows_per_block, job.n_rows)
    cdef Py_ssize_t k, count
    cdef bint known, next_counts
    cdef int64_t[MAX_LANES] label
    cdef RowNumbers rows
    cdef Sum[double] sum
    total.far_sum = Carried[double](0, 0)
    while i < stop:
        count = min(stop - i, lanes_of(scratch))
        if job.by_lanes and job.streaming:
            # Whole cache lines to the next group: this one ends where a line does.
            k = to_line(<storage*> row(&job.grad, i))
            count = min(count, k) if k > 0 else count
        begin_rows(job, i, count, label, rows.weight)
        for k in range(MAX_LANES):
            rows.unit[k] = 1
        if job.by_lanes:
            if not visit_lanes_of(job, i, count, label, scratch, &rows):
                visit_one_by_one(job, i, count, label, scratch, &rows)
        else:
            known = False
            for k in range(count):
                next_counts = k + 1 < count and rows.weight[k + 1] != 0
                known = visit_row_of(job, i + k, label + k, scratch, n_threads, &rows, k, next_counts, known)
        add_losses(job, i, count, i - block * job.rows_per_block, scratch, &rows, &sum, &total.far_sum)
        i += count
    total.sum = sum.value()
    if job.streaming:
        fence_streams()


cdef double visit_all(const Job* job, int n_threads, double denominator, storage* scratch) noexcept nogil:
    """All rows, shared out over the threads; returns the sum of their losses over the denominator, 0 if that is 0."""
    cdef Py_ssize_t n_blocks = (job.n_rows + job.rows_per_block - 1) // job.rows_per_block
    cdef Py_ssize_t block
    cdef Total totals[MAX_BLOCKS]
    cdef Carried[double] total = Carried[double](0, 0), far_total = total
    cdef double rounded
    if n_threads == 1 or job.by_stretches:
        for block in range(n_blocks):
            visit_block(job, block, scratch, n_threads, totals + block)
    else:
        for block in prange(n_blocks, num_threads=n_threads, schedule="static"):
            visit_block(job, block, scratch + job.scratch_per_thread * this_thread(), 1, totals + block)
    for block in range(n_blocks):
        total = total + totals[block].sum
        far_total = far_total + totals[block].far_sum
    if denominator == 0:
        return 0
    if far_total.sum != 0:
        return (total * FAR_STEP + far_total).less(0, &rounded) / denominator / FAR_STEP
    return total.less(0, &rounded) / denominator
