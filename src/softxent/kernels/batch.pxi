# A whole call: its rows, in blocks that are shared out over the threads, and the sum of their losses.
#
# Which rows make a block depends on the shape alone, and block sums are added in order, so the result does not depend
# on the number of threads. Sums carry what their additions round off.

cdef enum:
    MAX_BLOCKS = 512
    LOSSES_AT_ONCE = 8          # lanes of Vec[double]: as many rows share one logarithm
    LOGITS_PER_THREAD = 16384   # less work than this is not worth waking a thread for (measured)


cdef struct Job:
    Rows logits
    Rows targets
    Rows grad
    bint has_grad
    bint has_labels
    Py_ssize_t n_rows
    Py_ssize_t n_classes
    Py_ssize_t rows_per_block
    Py_ssize_t scratch_per_thread
    double scale
    float* losses32          # at most one of the two is given
    double* losses64


cdef struct Partial:
    # A sum of losses and what its additions rounded off.
    double sum
    double lost


cdef inline void add_loss(Partial* partial, double loss) noexcept nogil:
    cdef double next = partial.sum + loss
    partial.lost += rounded_off(partial.sum, loss, next)
    partial.sum = next


cdef inline void read_row(storage* to, const char* source, const Rows* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    if storage is float and rows.packed and rows.element.read_row != NULL:
        rows.element.read_row(source, to, n)
        return
    for c in range(n):
        to[c] = <storage> rows.element.read(source + c * rows.class_stride)


cdef inline void write_row(char* to, const storage* source, const Rows* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    if storage is float and rows.packed and rows.element.write_row != NULL:
        rows.element.write_row(to, source, n)
        return
    for c in range(n):
        rows.element.write(to + c * rows.class_stride, source[c])


cdef inline Outcome visit_row_of(const Job* job, Py_ssize_t i, storage* scratch) noexcept nogil:
    """Visit row i; what cannot be loaded or stored as it is goes through `scratch`, a row and one for distributions."""
    cdef Py_ssize_t n = job.n_classes, label = 0
    cdef storage* x = <storage*> row(&job.logits, i)
    cdef storage* g = NULL
    cdef storage* t = NULL
    cdef Outcome outcome
    if job.has_grad:
        g = <storage*> row(&job.grad, i) if job.grad.direct else scratch
    if not job.logits.direct:
        x = scratch if g == NULL else g
        read_row(x, row(&job.logits, i), &job.logits, n)
    if job.has_labels:
        label = job.targets.element.read_label(row(&job.targets, i))
        # Checked before, but another thread may have changed it since: then the result is wrong, not the memory.
        if not 0 <= label < n:
            label = 0
    elif job.targets.direct:
        t = <storage*> row(&job.targets, i)
    else:
        t = scratch + n
        read_row(t, row(&job.targets, i), &job.targets, n)
    outcome = visit_row(x, g, t, label, n, job.scale)
    if job.has_grad and not job.grad.direct:
        write_row(row(&job.grad, i), g, &job.grad, n)
    return outcome


cdef void visit_block(const Job* job, Py_ssize_t block, storage* scratch, Partial* partial) noexcept nogil:
    cdef Py_ssize_t i = block * job.rows_per_block
    cdef Py_ssize_t stop = min(i + job.rows_per_block, job.n_rows)
    cdef Py_ssize_t k, count
    cdef double[LOSSES_AT_ONCE] R, R_low, high, low, mass, cross, losses
    cdef Outcome outcome
    partial.sum = partial.lost = 0
    while i < stop:
        count = min(stop - i, LOSSES_AT_ONCE)
        for k in range(count):
            outcome = visit_row_of(job, i + k, scratch)
            R[k] = outcome.R
            R_low[k] = outcome.R_low
            high[k] = outcome.high
            low[k] = outcome.low
            mass[k] = outcome.mass
            cross[k] = outcome.cross
        store_first(&losses[0], count, row_losses(
            load_first(&R[0], count, 0), load_first(&R_low[0], count, 0), load_first(&high[0], count, 0),
            load_first(&low[0], count, 0), unit_size(scratch), load_first(&mass[0], count, 0),
            load_first(&cross[0], count, 0)))
        for k in range(count):
            add_loss(partial, losses[k])
            if job.losses32 != NULL:
                job.losses32[i + k] = <float> losses[k]
            elif job.losses64 != NULL:
                job.losses64[i + k] = losses[k]
        i += count


cdef double visit_all(const Job* job, int n_threads, storage* scratch) noexcept nogil:
    """All rows, shared out over the threads; returns the sum of their losses."""
    cdef Py_ssize_t n_blocks = (job.n_rows + job.rows_per_block - 1) // job.rows_per_block
    cdef Py_ssize_t block
    cdef Partial[MAX_BLOCKS] partials
    cdef Partial total = Partial(0, 0)
    if n_threads == 1:
        for block in range(n_blocks):
            visit_block(job, block, scratch, partials + block)
    else:
        for block in prange(n_blocks, num_threads=n_threads, schedule="static"):
            visit_block(job, block, scratch + job.scratch_per_thread * this_thread(), partials + block)
    for block in range(n_blocks):
        add_loss(&total, partials[block].sum)
        total.lost += partials[block].lost
    # With an infinite loss `lost` is NaN (inf - inf) and the sum is already the answer.
    return total.sum + total.lost if total.sum - total.sum == 0 else total.sum
