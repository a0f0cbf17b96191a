# How a call is done: which kernel visits the rows, how threads share them, how much scratch that takes.

cdef Py_ssize_t LONGEST_ROW = <Py_ssize_t> 1 << 56

cdef enum:
    NARROW_FLOATS = 320         # classes: up to here the narrow kernel is faster than the wide one (measured)
    NARROW_DOUBLES = 224
    NARROW_ACROSS_BYTES = 1024  # of a row, where the wide kernel would visit the rows in panels
    MIDDLE_CLASSES = 128        # from here to GROUPED_APART the middle kernel is the fastest, if it takes the call
    GROUPED_APART = 1024        # the most classes there unless groups overlap, and a cache holds the call (measured)
    FEW_GROUPED = 4             # rows: groups of fewer are slower (measured)
    CACHED_CALL = 8388608       # bytes of the logits of such a call
    MIDDLE_WITH_WORK = 192      # the same, if there is more to do for each row
    NEAR_ROW = 8192             # bytes that a row may need there with some options, and if groups overlap (measured)
    NEAR_IN_LINE = 12288
    FEW_ROWS = 8                # with fewer rows the wide kernel is faster than both
    MAX_LANES = 32
    FEW_PANEL_ROWS = 4          # panels of fewer rows do not pay
    NEAR_PANEL = 524288         # bytes of the panels of a thread that stay in a cache near the core
    PANEL_BYTES = 4194304       # the most that the panels of a thread take


cpdef int thread_limit(int n_threads) noexcept nogil:
    """How many threads a large call runs on, if it may use n_threads; 0 leaves that to OpenMP.

    Never more than there are CPUs, unless OpenMP is set to more.
    """
    return openmp_threads() if n_threads <= 0 else min(n_threads, max(processors(), openmp_threads()))


cpdef int team_size(Py_ssize_t n_rows, Py_ssize_t n_classes, int n_threads) noexcept nogil:
    """How many threads a call of this size runs on."""
    cdef double work = <double> n_rows * n_classes      # the product of two sizes may not fit an integer
    cdef double parts = max(<double> n_rows, work / STRETCH)
    cdef int most = <int> min(min(work / LOGITS_PER_THREAD, parts), <double> MAX_BLOCKS)
    return min(most, thread_limit(n_threads)) if most > 1 else 1


cdef inline bint is_converted(const Layout* layout) noexcept nogil:
    return layout.packed and not layout.typed


cdef void place_tiles(Job* job) noexcept nogil:
    """Fill in which tiles the narrow kernel needs, one after the other."""
    cdef int n_tiles = 1
    if job.kind == DISTRIBUTIONS or job.builds_target:
        job.target_tile = n_tiles
        n_tiles += 1
    if job.has_slope or job.has_allowed:
        job.slope_tile = n_tiles
        n_tiles += 1
    if job.keeps_logits:
        job.kept_tile = n_tiles
        n_tiles += 1
    if job.result == PRODUCT or job.result == HESSIAN:
        job.second_tile = n_tiles
        n_tiles += 1
    job.staging_tile = n_tiles


cdef inline bint is_across(const Layout* rows) noexcept nogil:
    """Whether the rows are closer together than the classes."""
    return not rows.packed and llabs(rows.step) < llabs(rows.class_stride) and rows.length >= FEW_PANEL_ROWS


cdef inline bint has_second_panel(const Job* job) noexcept nogil:
    return (job.result == PRODUCT and is_across(&job.vectors)) or (job.result == HESSIAN and is_across(&job.hess))


cdef inline bint has_panels(const Job* job) noexcept nogil:
    """Whether the wide kernel would visit rows of some array in panels."""
    return (
        is_across(&job.logits) or (job.has_grad and is_across(&job.grad)) or has_second_panel(job)
        or (job.kind == DISTRIBUTIONS and is_across(&job.targets)) or (job.has_allowed and is_across(&job.allowed)))


cdef inline bint copies_second(const Job* job) noexcept nogil:
    """Whether the wide kernel needs a row of scratch for a vector, or for the diagonal of a Hessian."""
    return (job.result == PRODUCT and not is_direct(&job.vectors)) or (
        job.result == HESSIAN and not is_direct(&job.hess))


cdef inline bint have_room(const Job* job, int n_tiles, Py_ssize_t more) noexcept nogil:
    """Whether the space of the narrow kernel holds so many tiles and `more` bytes."""
    # The first comparison keeps the product from overflowing.
    return job.n_classes <= TILE_BYTES // LANE_BYTES and n_tiles * job.n_classes * LANE_BYTES + more <= TILE_BYTES


cdef inline bint fits_lanes(const Job* job, bint direct, Py_ssize_t itemsize) noexcept nogil:
    """Whether the narrow kernel takes this call.

    It is for few classes, and for rows that cannot be loaded as they are, unless panels are better for them.
    """
    # Rows of other types are converted in a tile of their own.
    cdef bint staged = is_converted(&job.logits) or (job.has_grad and is_converted(&job.grad)) or job.has_allowed
    staged |= job.kind == DISTRIBUTIONS and is_converted(&job.targets)
    staged |= job.result == PRODUCT and is_converted(&job.vectors)
    staged |= job.result == HESSIAN and is_converted(&job.hess)
    # Beyond the tiles there is one more row: lanes without a row of their own are written to it.
    if not have_room(job, job.staging_tile + staged, job.n_classes * itemsize):
        return False
    if has_panels(job):
        return job.n_classes * itemsize <= NARROW_ACROSS_BYTES
    return not direct or (
        job.n_classes <= (NARROW_DOUBLES if job.in_double else NARROW_FLOATS) and job.n_rows >= FEW_ROWS)


cdef inline bint is_second_order(const Job* job) noexcept nogil:
    return job.result == PRODUCT or job.result == HESSIAN


cdef inline bint can_be_grouped(const Job* job, bint in_place) noexcept nogil:
    """Whether the middle kernel has what this call needs, whatever the size."""
    if not job.logits.loadable or job.builds_target or (job.has_allowed and not job.allowed.packed):
        return False
    if job.kind == DISTRIBUTIONS and not job.targets.direct:
        return False
    if job.has_grad and not job.grad.packed or job.grad_is_input:
        return False
    if job.diagnostics.argmax != NULL and job.formula.smoothing != 0:
        return False
    if is_second_order(job) and (job.has_probs or copies_second(job) or job.formula.weighs or not job.grad.direct):
        return False
    # In place, exponentials would overwrite what the wide kernel needs if it is to visit a group after all.
    return not (in_place and job.grad.direct) or not (
        job.transforms or job.formula.z_loss != 0 or job.formula.smoothing != 0 or is_second_order(job))


cdef inline bint is_near(const Job* job, Py_ssize_t itemsize) noexcept nogil:
    """Whether what a row needs is so small that a group of rows stays near the core."""
    cdef bint second = is_second_order(job), converts = job.has_grad and not job.grad.direct
    cdef Py_ssize_t bytes_of_class = job.logits.class_stride + itemsize
    if job.in_line and job.transforms:          # logits that are made ahead are worth it in any case
        return True
    if not (job.transforms or job.formula.weighs or job.kind == DISTRIBUTIONS or second or converts):
        return True
    if job.kind == DISTRIBUTIONS:
        bytes_of_class += job.targets.class_stride
    if job.formula.weighs:
        bytes_of_class += itemsize
    if converts or second:
        bytes_of_class += job.grad.class_stride
    return job.n_classes * bytes_of_class <= (NEAR_IN_LINE if job.in_line else NEAR_ROW)


cdef inline bint is_cached(const Job* job, Py_ssize_t itemsize) noexcept nogil:
    """Whether a cache holds the logits and the results of the whole call."""
    return <double> job.n_rows * job.n_classes * itemsize <= CACHED_CALL


cdef inline bint adds_little(const Job* job) noexcept nogil:
    """Whether the sweep of the exponentials adds up no more than gaps, and no sweep for class weights comes before."""
    return not job.formula.weighs and job.diagnostics.argmax == NULL and not is_second_order(job)


cdef inline bint makes_logits_ahead(const Job* job) noexcept nogil:
    """Whether logits of the softmax that are not those given can be made a group of the middle kernel ahead."""
    return (
        job.transform.cap == 0 and job.formula.smoothing == 0 and adds_little(job)
        and not (job.has_allowed and job.allowed.n_axes > 1) and not (job.has_grad and job.grad.n_axes > 1))


cdef inline bint is_in_line(const Job* job, Py_ssize_t itemsize) noexcept nogil:
    """Whether groups of the middle kernel overlap: see row/pipeline.hpp. No gain where results wait for memory."""
    return job.logits.direct and job.logits.n_axes == 1 and (
        not job.transforms or makes_logits_ahead(job)) and (not job.has_grad or is_cached(job, itemsize))


cdef inline Py_ssize_t rows_of_group(const Job* job, bint in_place, Py_ssize_t itemsize) noexcept nogil:
    """How many rows the middle kernel visits at once; 0 if it does not take this call."""
    cdef Py_ssize_t least = MIDDLE_CLASSES, most = GROUPED_APART, group_bytes = GROUP_BYTES
    if job.in_line:
        # Groups that overlap wait less for memory, and more rows share what a group takes. Calls with more sums gain
        # little or do not overlap, but the larger group is no slower for them up to GROUPED_APART (measured).
        group_bytes *= 2
        if is_cached(job, itemsize) and adds_little(job):
            most = min(GROUPED_CLASSES, group_bytes // (FEW_GROUPED * itemsize))
    if job.transform.cap > 0 or job.formula.weighs or job.kind == SPARSE or job.diagnostics.argmax != NULL:
        least = MIDDLE_WITH_WORK
    if not job.logits.direct or (job.has_grad and not job.grad.direct):
        least = MIDDLE_WITH_WORK
    if job.by_stretches or job.n_rows < FEW_ROWS or not least <= job.n_classes <= most:
        return 0
    if not (can_be_grouped(job, in_place) and is_near(job, itemsize)):
        return 0
    return min(group_bytes // (job.n_classes * itemsize), LANE_BYTES // itemsize)


cdef inline bint streams_rows(const Job* job, Py_ssize_t itemsize) noexcept nogil:
    """Whether rows that lie one after the other are made in memory near the core, and stored past the caches."""
    if job.grad.n_axes != 1 or job.grad.step != itemsize * job.n_classes:
        return False
    if not job.by_lanes:
        return True
    return (
        (job.kind == LABELS or job.result != GRADIENT) and job.n_classes >= 4
        and have_room(job, job.staging_tile + 1, 0)
        and not (job.has_sample_weight or job.has_ignored or job.has_slope or job.has_allowed))


cdef inline bint is_direct(const Layout* rows) noexcept nogil:
    """Whether the wide kernel loads or stores the rows as they are, where they lie or in a panel."""
    return rows.direct or rows.panel >= 0


cdef void place_panels(Job* job, Py_ssize_t itemsize) noexcept nogil:
    """Fill in which rows are visited in panels, and how many rows a panel has."""
    cdef bint of_targets = job.kind == DISTRIBUTIONS and is_across(&job.targets)
    cdef bint of_logits = is_across(&job.logits), of_grad = job.has_grad and is_across(&job.grad)
    cdef bint of_allowed = job.has_allowed and is_across(&job.allowed), of_second = has_second_panel(job)
    cdef Py_ssize_t second = (of_logits or of_grad) + of_targets, n_panels = second + of_second
    cdef Py_ssize_t class_bytes = n_panels * itemsize + of_allowed
    cdef Py_ssize_t line = CACHE_LINE // itemsize, row_bytes, n_rows, size
    if not has_panels(job) or job.n_classes > PANEL_BYTES // FEW_PANEL_ROWS:
        return
    # An odd number of cache lines: rows that are a power of two apart would drive each other out of the cache.
    job.panel_pitch = ((job.n_classes + line - 1) // line | 1) * line
    # As many rows as stay near the core, but whole cache lines of them unless that takes too much memory.
    row_bytes = class_bytes * job.panel_pitch
    n_rows = min(max(NEAR_PANEL // row_bytes, 2 * line), PANEL_BYTES // row_bytes)
    n_rows = min(n_rows // line * line if n_rows >= line else n_rows, PANEL_WIDTH // itemsize)
    if n_rows < FEW_PANEL_ROWS:
        return
    job.panel_rows = n_rows
    size = n_rows * job.panel_pitch
    # The gradient overwrites the logits.
    job.logits.panel = 0 if of_logits else -1
    job.grad.panel = 0 if of_grad else -1
    job.targets.panel = (second - 1) * size * itemsize if of_targets else -1
    job.vectors.panel = second * size * itemsize if of_second and job.result == PRODUCT else -1
    job.hess.panel = second * size * itemsize if of_second and job.result == HESSIAN else -1
    job.allowed.panel = n_panels * size * itemsize if of_allowed else -1
    job.panels_size = size * class_bytes // itemsize


cdef void make_plan(Job* job, bint in_place, int n_threads) noexcept nogil:
    """Fill in how the rows are visited, by at most n_threads threads."""
    cdef Py_ssize_t itemsize = sizeof(double) if job.in_double else sizeof(float)
    cdef bint makes_target = job.builds_target or (job.kind == DISTRIBUTIONS and not job.targets.direct)
    cdef bint direct = job.logits.direct and (not job.has_grad or job.grad.direct) and not makes_target
    cdef bint copies = copies_second(job), ahead
    n_threads = team_size(job.n_rows, job.n_classes, n_threads)
    job.by_stretches = job.n_classes > STRETCH and job.n_rows < 2 * n_threads and job.n_rows % n_threads != 0
    job.n_threads = n_threads if job.by_stretches else min(n_threads, job.n_rows)
    place_tiles(job)
    direct = direct and not copies
    job.in_line = is_in_line(job, itemsize)
    job.group_rows = rows_of_group(job, in_place, itemsize)
    job.by_lanes = job.group_rows == 0 and fits_lanes(job, direct, itemsize)
    if job.by_lanes:
        job.group_rows = LANE_BYTES // itemsize
    if job.group_rows == 0 and not job.by_stretches:
        place_panels(job, itemsize)
        makes_target = job.builds_target or (job.kind == DISTRIBUTIONS and not is_direct(&job.targets))
        copies = copies_second(job)
        direct = is_direct(&job.logits) and (not job.has_grad or is_direct(&job.grad)) and not (makes_target or copies)
    # A gradient that no cache can hold is better stored past the caches, at once and in whole cache lines.
    job.streaming = not in_place and <double> job.n_rows * job.n_classes >= STREAM_FROM
    job.streaming = job.streaming and job.has_grad
    if job.streaming:
        if job.group_rows > 0 and job.result == HESSIAN:
            job.streaming = False
        elif job.group_rows > 0:
            job.streaming = direct and streams_rows(job, itemsize) or (
                job.grad.typed and job.grad.step == itemsize and job.grad.class_stride % CACHE_LINE == 0)
        elif job.grad.panel >= 0:
            job.streaming = job.grad.typed and job.grad.stacked
        else:
            job.streaming = direct and not job.has_slope and job.n_classes >= STRETCH and job.hess.panel < 0
    # With labels and distributions, at most two gradients of a row are changed after they were stored.
    job.converts_stores = job.has_grad and job.result == GRADIENT and not (
        job.grad.direct or job.by_lanes or job.kind == SPARSE or job.has_slope) and (
        job.grad.loadable or (job.grad.packed and job.grad.element in (FLOAT32, FLOAT64)))
    direct = direct and not job.has_slope and not job.grad_is_input and not copies and (
        (job.has_grad and not job.keeps_logits) or not job.transforms) and (not job.streaming or job.grad.panel >= 0)
    if job.group_rows > 0:
        # Logits that are made ahead, and not where results go, are those of two groups.
        ahead = job.in_line and job.transforms and not (job.by_lanes or is_made_in_place(job))
        job.scratch_rows = 2 * job.group_rows if ahead else 0
    elif copies:
        job.scratch_rows = VECTOR_ROW + 1
    elif job.has_allowed and not job.allowed.packed and job.allowed.panel < 0:
        job.scratch_rows = ALLOWED_ROW + 1
    elif job.has_slope:
        job.scratch_rows = SLOPE_ROW + 1
    elif makes_target:
        job.scratch_rows = TARGET_ROW + 1
    elif not direct:
        job.scratch_rows = LOGITS_ROW + 1
    # The array of a row that is too long for the product does not fit into memory either.
    job.scratch_size = job.panels_size + job.scratch_rows * min(job.n_classes, LONGEST_ROW)
    job.scratch_size = (job.scratch_size + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    job.prefetching = <double> job.n_rows * job.n_classes >= (PREFETCH_FROM if job.by_lanes else PREFETCH_ROWS_FROM)
    # Enough rows to fill the lanes and to compute logarithms together, but not too much work for one block.
    job.rows_per_block = max(
        min(LOGITS_PER_THREAD // job.n_classes, <Py_ssize_t> (2 * MAX_LANES)),
        (job.n_rows + MAX_BLOCKS - 1) // MAX_BLOCKS)
    if job.n_classes <= TILE_BYTES // LANE_BYTES:
        job.rows_per_block = (job.rows_per_block + MAX_LANES - 1) // MAX_LANES * MAX_LANES


cdef inline size_t scratch_bytes(const Job* job) noexcept nogil:
    """The memory that the kernels need, with room to align it; SIZE_MAX if that is more than there can be."""
    cdef size_t size = (1 if job.by_stretches else job.n_threads) * (sizeof(double) if job.in_double else sizeof(float))
    if job.scratch_size == 0:
        return 0
    if <size_t> job.scratch_size >= SIZE_MAX // 2 // size:
        return SIZE_MAX
    return size * job.scratch_size + CACHE_LINE


cdef inline void* aligned(void* memory) noexcept nogil:
    """Where scratch begins in `memory`."""
    return <void*> ((<size_t> memory + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE)
