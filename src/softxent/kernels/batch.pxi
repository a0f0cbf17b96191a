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


cdef struct Job:
    Rows logits
    Rows targets
    Rows grad
    Rows weights             # of the rows
    bint has_grad
    bint has_labels
    bint has_weights
    bint has_passed_over     # rows with the label `passed_over` are not looked at
    int64_t passed_over
    bint by_lanes            # the narrow kernel takes the rows, as many at once as it has lanes
    bint by_stretches        # all threads work on one row after the other
    bint streaming           # the gradient is stored past the caches; wide rows keep their exponentials in the scratch
    bint prefetching         # logits are asked for before they are needed
    Py_ssize_t n_rows
    Py_ssize_t n_classes
    Py_ssize_t rows_per_block
    Py_ssize_t scratch_per_thread
    double scale             # of the gradient, before the weight of the row
    float* losses32          # at most one of the two is given
    double* losses64


cdef inline LabelRange label_range(const Job* job) noexcept nogil:
    cdef LabelRange labels
    labels.n_classes = job.n_classes
    labels.passed_over = &job.passed_over if job.has_passed_over else NULL
    return labels


cdef inline double weight_of(const Job* job, Py_ssize_t i) noexcept nogil:
    return job.weights.element.read(row(&job.weights, i)) if job.has_weights else 1


cdef double total_weight(const Job* job) noexcept nogil:
    """Of all rows that are not passed over."""
    cdef Carried[double] total = Carried[double](0, 0)
    cdef LabelRange labels = label_range(job)
    cdef int64_t[MAX_LANES] label
    cdef Py_ssize_t i = 0, count, k
    cdef double rounded
    if not job.has_weights and not job.has_passed_over:
        return job.n_rows
    while i < job.n_rows:
        count = min(job.n_rows - i, MAX_LANES)
        if job.has_passed_over:
            read_labels(&job.targets, i, count, &labels, label)
        for k in range(count):
            if not job.has_passed_over or label[k] >= 0:
                total = total + Carried[double](weight_of(job, i + k), 0)
        i += count
    return total.less(0, &rounded)


cdef void zero_row(const Rows* rows, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    cdef char* start = row(rows, i)
    cdef Py_ssize_t c
    if rows.packed and n > 1:
        memset(start, 0, n * rows.class_stride)
        return
    for c in range(n):
        rows.element.write(start + c * rows.class_stride, 0)


cdef inline void read_row(storage* to, const char* source, const Rows* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    if storage is float and rows.halves:
        rows.element.read_row(source, to, n)
        return
    for c in range(n):
        to[c] = <storage> rows.element.read(source + c * rows.class_stride)


cdef inline void write_row(char* to, const storage* source, const Rows* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    if storage is float and rows.halves:
        rows.element.write_row(to, source, n)
        return
    for c in range(n):
        rows.element.write(to + c * rows.class_stride, source[c])


cdef void share_row(
    const storage* x, storage* e, const storage* t, Py_ssize_t y, storage* g, Py_ssize_t n, double scale,
    bint streaming, int n_threads, RowNumbers* rows, int k
) noexcept nogil:
    """visit_row, its stretches shared out over the threads."""
    cdef Py_ssize_t length = stretch_length(n), n_stretches = (n + length - 1) // length, i
    cdef double[MAX_STRETCHES] tops
    cdef Part parts[MAX_STRETCHES]
    cdef Part row
    cdef Scaling scaling
    cdef RowUnit[storage] unit
    cdef double m = -INFINITY, e_top
    for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
        tops[i] = row_max(x + i * length, min(length, n - i * length))
    for i in range(n_stretches):
        m = max(m, tops[i])
    unit = RowUnit[storage](<storage> m)
    e_top = first(exp(Vec[storage](m), unit))
    for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
        visit_stretch(
            parts + i, x + i * length, e + i * length if e != NULL else NULL, t + i * length if t != NULL else NULL,
            y - i * length, min(length, n - i * length), m, unit, 0)
    for i in range(n_stretches):
        add_part(&row, parts + i, i * length, e_top)
    scaling = finish_row(&row, e, t, y, m, unit, e_top, scale, rows, k)
    if g != NULL:
        for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
            scale_stretch(
                &scaling, e + i * length, t + i * length if t != NULL else NULL, g + i * length,
                min(length, n - i * length), streaming)
            if streaming:
                fence_streams()
        set_special(&scaling, g)


cdef inline void visit_row_of(
    const Job* job, Py_ssize_t i, storage* scratch, int n_threads, RowNumbers* rows, int k
) noexcept nogil:
    """Visit row i; what cannot be loaded or stored as it is goes through `scratch`, a row and one for distributions."""
    cdef Py_ssize_t n = job.n_classes, ahead = 0
    cdef int64_t label = 0
    cdef LabelRange labels = label_range(job)
    cdef double scale
    cdef storage* x = <storage*> row(&job.logits, i)
    cdef storage* t = NULL
    cdef storage* g = NULL
    cdef storage* e = NULL
    if job.has_labels:
        # Checked before, but another thread may have changed it since: then the result is wrong, not the memory.
        read_labels(&job.targets, i, 1, &labels, &label)
    if label < 0:
        rows.R[k] = rows.R_low[k] = rows.over[k] = rows.n0[k] = rows.mass[k] = rows.cross[k] = rows.weight[k] = 0
        if job.has_grad:
            zero_row(&job.grad, i, n)
        return
    rows.weight[k] = weight_of(job, i)
    scale = job.scale * rows.weight[k]
    if job.has_grad:
        g = <storage*> row(&job.grad, i) if job.grad.direct else scratch
        e = scratch if job.streaming else g
    if not job.logits.direct:
        x = scratch if e == NULL else e
        read_row(x, row(&job.logits, i), &job.logits, n)
    elif job.prefetching and n <= PREFETCHED_ROW and i + 1 < job.n_rows:
        ahead = <storage*> row(&job.logits, i + 1) - x
    if not job.has_labels:
        t = <storage*> row(&job.targets, i) if job.targets.direct else scratch + n
        if not job.targets.direct:
            read_row(t, row(&job.targets, i), &job.targets, n)
    if job.by_stretches:
        share_row(x, e, t, label, g, n, scale, job.streaming, n_threads, rows, k)
    else:
        visit_row(x, e, t, label, g, n, scale, job.streaming, ahead, rows, k)
    if job.has_grad and not job.grad.direct:
        write_row(row(&job.grad, i), g, &job.grad, n)


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
            for c in range(n):
                tile[c * lanes_of(tile) + lane] = <storage> rows.element.read(at[lane] + c * rows.class_stride)
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


cdef inline void prefetch_rows(const Rows* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t size) noexcept nogil:
    """Ask for rows of `size` bytes that follow each other with no gap, or one too small to skip."""
    if rows.direct and rows.n_axes == 1 and size <= rows.step <= size + 64:
        prefetch(rows.data + i * rows.step, count * rows.step)


cdef void zero_lanes(storage* tile, const bint* which, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t lane, c
    for lane in range(lanes_of(tile)):
        if which[lane]:
            for c in range(n):
                tile[c * lanes_of(tile) + lane] = 0


cdef void visit_lanes_of(
    const Job* job, Py_ssize_t i, Py_ssize_t count, const storage* tag, RowNumbers* rows
) noexcept nogil:
    """Visit `count` rows from i on, at most as many as there are lanes, in tiles on the stack."""
    cdef Tile[storage] tile
    cdef LaneGroup[storage] group
    cdef Py_ssize_t n = job.n_classes, size = n * lanes_of(tag), lane
    cdef LabelRange labels = label_range(job)
    cdef double[MAX_LANES] scales
    cdef bint[MAX_LANES] passed
    cdef storage* x = tile.space
    cdef storage* t = NULL
    cdef storage* staging = x + size
    if not job.has_labels:
        t = staging
        staging += size
        read_tile(&job.targets, i, count, n, t, staging)
    read_tile(&job.logits, i, count, n, x, staging)
    if job.prefetching:
        prefetch_rows(&job.logits, i + count, count, n * sizeof(storage))
    if job.has_labels:
        read_labels(&job.targets, i, count, &labels, group.label)
    if job.has_passed_over:
        for lane in range(lanes_of(tag)):
            passed[lane] = lane < count and group.label[lane] < 0
            if passed[lane]:
                group.label[lane] = 0
        zero_lanes(x, passed, n)
    for lane in range(lanes_of(tag)):
        rows.weight[lane] = 1
        scales[lane] = job.scale
    if job.has_weights:
        for lane in range(count):
            rows.weight[lane] = weight_of(job, i + lane)
            scales[lane] *= rows.weight[lane]
    if job.has_passed_over:
        for lane in range(count):
            if passed[lane]:
                rows.weight[lane] = 0
    find_top(&group, x, n, rows)
    if job.has_labels:
        find_labels(&group, x, count, rows)
    else:
        find_distributions(&group, x, t, n, rows)
    take_exponentials(&group, x, n, rows)
    if job.has_grad:
        if job.prefetching:
            prefetch_rows(&job.grad, i + count, count, n * sizeof(storage))
        find_factors(&group, x, n, scales, job.has_labels, rows)
        take_gradients(&group, x, t, n)
        if job.has_passed_over:
            zero_lanes(x, passed, n)
        write_tile(&job.grad, i, count, n, x, staging, job.streaming)


cdef void add_losses(
    const Job* job, Py_ssize_t i, Py_ssize_t count, Py_ssize_t before, const storage* tag, const RowNumbers* rows,
    Sum[double]* sum
) noexcept nogil:
    """The losses of the rows from i on, of which as many come `before` in their block."""
    # Row by row in turn to the lanes of the sum, however they come in groups.
    cdef double[MAX_LANES + 2 * ROWS_AT_ONCE] losses
    cdef Py_ssize_t first = before % ROWS_AT_ONCE, k
    for k in range(first):
        losses[k] = 0
    row_losses(tag, rows[0], count, &losses[first])
    k = 0
    while k < first + count:
        sum.add(load_first(&losses[k], min(first + count - k, ROWS_AT_ONCE), 0))
        k += ROWS_AT_ONCE
    if job.losses32 != NULL:
        for k in range(count):
            job.losses32[i + k] = <float> losses[first + k]
    elif job.losses64 != NULL:
        for k in range(count):
            job.losses64[i + k] = losses[first + k]


cdef void visit_block(
    const Job* job, Py_ssize_t block, storage* scratch, int n_threads, Carried[double]* total
) noexcept nogil:
    cdef Py_ssize_t i = block * job.rows_per_block
    cdef Py_ssize_t stop = min(i + job.rows_per_block, job.n_rows)
    cdef Py_ssize_t k, count
    cdef RowNumbers rows
    cdef Sum[double] sum
    while i < stop:
        count = min(stop - i, lanes_of(scratch))
        if job.by_lanes:
            if job.streaming:
                # Whole cache lines to the next group: this one ends where a line does.
                k = to_line(<storage*> row(&job.grad, i))
                count = min(count, k) if k > 0 else count
            visit_lanes_of(job, i, count, scratch, &rows)
        else:
            for k in range(count):
                visit_row_of(job, i + k, scratch, n_threads, &rows, k)
        add_losses(job, i, count, i - block * job.rows_per_block, scratch, &rows, &sum)
        i += count
    total[0] = sum.value()
    if job.streaming:
        fence_streams()


cdef double visit_all(const Job* job, int n_threads, storage* scratch) noexcept nogil:
    """All rows, shared out over the threads; returns the sum of their losses."""
    cdef Py_ssize_t n_blocks = (job.n_rows + job.rows_per_block - 1) // job.rows_per_block
    cdef Py_ssize_t block
    cdef Carried[double] totals[MAX_BLOCKS]
    cdef Carried[double] total = Carried[double](0, 0)
    cdef double rounded
    if n_threads == 1 or job.by_stretches:
        for block in range(n_blocks):
            visit_block(job, block, scratch, n_threads, totals + block)
    else:
        for block in prange(n_blocks, num_threads=n_threads, schedule="static"):
            visit_block(job, block, scratch + job.scratch_per_thread * this_thread(), 1, totals + block)
    for block in range(n_blocks):
        total = total + totals[block]
    return total.less(0, &rounded)
