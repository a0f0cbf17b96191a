# A whole call: its rows, in blocks that are shared out over the threads, and the sum of their losses.
#
# Which rows make a block depends on the shape alone, and block sums are added in order, so the result does not depend
# on the number of threads. If there are only a few long rows, which cannot be shared out evenly, the threads work on
# one row together.


cdef enum:
    FAR_EXPONENT = 512          # 1 / FAR_STEP is 2 to this power
    MAX_UNIT_EXPONENT = 1000


cdef struct Total:
    # The losses of a block, in two sums: see add_losses. far_sum is multiplied by FAR_STEP.
    Carried[double] sum
    Carried[double] far_sum


cdef void add_far_losses(
    const Job* job, Py_ssize_t count, const real* tag, const RowNumbers* numbers, const double* losses,
    Carried[double]* far_sum
) noexcept nogil:
    """Add losses times FAR_STEP to `far_sum`.

    A loss that is too large for a double, though no part of it is infinite, is computed again with a smaller weight.
    """
    cdef double[MAX_ROWS + ROWS_AT_ONCE] far_losses
    cdef RowNumbers far
    cdef Py_ssize_t k
    cdef bint too_large = False
    for k in range(count):
        far_losses[k] = losses[k] * FAR_STEP
        too_large |= not is_finite(losses[k]) and is_finite(numbers.cross[k])
    if too_large:
        far = numbers[0]
        for k in range(count):
            far.weight[k] *= FAR_STEP
        row_losses(tag, far, count, job.formula.z_loss, job.has_grad, far_losses)
    for k in range(count):
        far_sum.add(losses[k] * FAR_STEP if is_finite(losses[k]) or far_losses[k] == 0 else far_losses[k])


cdef inline void add_losses(
    const Job* job, Py_ssize_t i, Py_ssize_t count, Py_ssize_t before, const real* tag, const RowNumbers* numbers,
    Sum[double]* sum, Carried[double]* far_sum
) noexcept nogil:
    """Write and add up the losses of `count` rows from i on; `before` is how many rows of the block came earlier.

    If they do not fit into `sum`, they go to `far_sum`, multiplied by FAR_STEP.
    """
    # Row k of a block goes to lane k % ROWS_AT_ONCE of the sum, whatever groups its rows come in.
    cdef double[MAX_ROWS + 2 * ROWS_AT_ONCE] losses
    cdef Py_ssize_t offset = before % ROWS_AT_ONCE, k
    cdef Sum[double] sum_before = sum[0]
    cdef double unit = job.class_unit if job.class_unit != 0 else 1
    for k in range(offset):
        losses[k] = 0
    row_losses(tag, numbers[0], count, job.formula.z_loss, job.has_grad, &losses[offset])
    k = 0
    while k + ROWS_AT_ONCE <= offset + count:
        sum.add(load(&losses[k]))
        k += ROWS_AT_ONCE
    if k < offset + count:
        sum.add(load_first(&losses[k], offset + count - k, 0))
    if not has_room(sum[0]) and is_finite(far_sum.sum):
        sum[0] = sum_before
        add_far_losses(job, count, tag, numbers, &losses[offset], far_sum)
    if job.losses32 != NULL:
        for k in range(count):
            job.losses32[i + k] = <float> (losses[offset + k] * unit)
    elif job.losses64 != NULL:
        for k in range(count):
            job.losses64[i + k] = losses[offset + k] * unit


cdef inline Py_ssize_t visit_group(
    const Job* job, Py_ssize_t i, Py_ssize_t most, int64_t* label, const real* tag, Pipeline[real]* line,
    RowNumbers* numbers, int k
) noexcept nogil:
    """Visit a group of at most `most` rows from i on, the first of which is row k of `numbers`; returns how many."""
    cdef LaneNumbers of_lanes = LaneNumbers(numbers[0], k)
    cdef Py_ssize_t size = job.group_rows, count, n_groups
    cdef bint done
    if job.by_lanes:
        count = min(most, size)
        done = visit_lanes(job, i, count, label, tag, &of_lanes)
    else:
        # Groups of about the same size: what is found for all rows at once takes as long for a few.
        n_groups = (most + size - 1) // size
        count = (most + n_groups - 1) // n_groups
        done = visit_middle(job, i, count, label, tag, line, &of_lanes)
    if not done:
        visit_one_by_one(job, i, count, label, tag, numbers, k)
    return count


cdef void visit_block(
    const Job* job, Py_ssize_t block, real* scratch, int n_threads, Panels* panels, Pipeline[real]* line, Total* total
) noexcept nogil:
    cdef Py_ssize_t i = block * job.rows_per_block
    cdef Py_ssize_t stop = min(i + job.rows_per_block, job.n_rows)
    cdef Py_ssize_t k, count
    cdef bint known
    cdef int64_t[MAX_ROWS] label
    cdef RowNumbers numbers
    cdef Sum[double] sum
    total.far_sum = Carried[double](0, 0)
    while i < stop:
        count = min(stop - i, <Py_ssize_t> MAX_ROWS)
        if job.by_lanes and job.streaming and not job.grad.direct:
            # These rows end at the end of a cache line, so that the next ones store whole lines.
            k = to_line(<real*> row_address(&job.grad, i))
            count = min(count, k) if k > 0 else count
        if panels != NULL:
            count = min(count, turn_panels(panels, i, scratch))
        begin_rows(job, i, count, label, numbers.weight)
        if job.formula.z_loss != 0:
            for k in range(MAX_ROWS):
                numbers.unit[k] = 1
        k = 0
        known = False
        while k < count:
            if job.group_rows > 0:
                k += visit_group(job, i + k, count - k, label + k, scratch, line, &numbers, k)
            else:
                known = visit_row_of(
                    job, i + k, label + k, scratch, n_threads, &numbers, k,
                    k + 1 < count and numbers.weight[k + 1] != 0, known)
                k += 1
        if job.diagnostics.argmax != NULL:
            write_diagnostics_of(<const real*> scratch, numbers, label, count, job.diagnostics, i)
        if job.result == GRADIENT or job.result == HESSIAN or job.result == LOGSUMEXP:
            add_losses(job, i, count, i - block * job.rows_per_block, scratch, &numbers, &sum, &total.far_sum)
        i += count
    total.sum = sum.value()
    if job.streaming:
        fence_streams()


cdef void visit_in_panels(
    const Job* job, Py_ssize_t block, Py_ssize_t stop, real* scratch, Total* totals
) noexcept nogil:
    """Visit the blocks [block, stop), whose rows are copied to panels. A panel may have rows of several blocks."""
    cdef Panels panels
    open_panels(&panels, job, min(stop * job.rows_per_block, job.n_rows), <char*> scratch)
    while block < stop:
        visit_block(&panels.job, block, scratch + job.panels_size, 1, &panels, NULL, totals + block)
        block += 1
    close_panels(&panels, scratch)


cdef void visit_blocks(
    const Job* job, Py_ssize_t block, Py_ssize_t stop, real* scratch, int n_threads, Total* totals
) noexcept nogil:
    """Visit the blocks [block, stop)."""
    cdef Pipeline[real] line
    if job.panel_rows > 0:
        visit_in_panels(job, block, stop, scratch, totals)
        return
    open_pipeline(job, stop * job.rows_per_block, scratch, &line)
    while block < stop:
        visit_block(job, block, scratch, n_threads, NULL, &line, totals + block)
        block += 1
    close_pipeline(job, &line)


cdef double visit_all(const Job* job, const Scale* divisor, real* scratch) noexcept nogil:
    """Visit all rows, on all threads. Returns the sum of their losses divided by `divisor`, 0 if that is 0."""
    cdef Py_ssize_t n_blocks = (job.n_rows + job.rows_per_block - 1) // job.rows_per_block
    cdef Py_ssize_t n_shares = 1 if job.by_stretches else job.n_threads, share, block
    cdef Total totals[MAX_BLOCKS]
    cdef Carried[double] total = Carried[double](0, 0), far_total = total
    cdef double rounded
    if n_shares == 1:
        visit_blocks(job, 0, n_blocks, scratch, job.n_threads, totals)
    else:
        for share in prange(n_shares, num_threads=job.n_threads, schedule="static"):
            visit_blocks(
                job, share * n_blocks // n_shares, (share + 1) * n_blocks // n_shares,
                scratch + job.scratch_size * this_thread(), 1, totals)
    for block in range(n_blocks):
        total = total + totals[block].sum
        far_total = far_total + totals[block].far_sum
    if divisor.mantissa == 0:
        return 0
    if far_total.sum == 0:
        return ldexp(total.minus(0, &rounded) / divisor.mantissa, -divisor.exponent)
    total = total * FAR_STEP + far_total
    return ldexp(total.minus(0, &rounded) / divisor.mantissa, FAR_EXPONENT - divisor.exponent)


cdef double total_weight_in_panels(const Job* job, real* scratch) noexcept nogil:
    """As total_weight, for distributions that are copied to panels, alone."""
    cdef Job of_targets = job[0]
    cdef Panels panels
    of_targets.logits.panel = of_targets.grad.panel = of_targets.allowed.panel = -1
    of_targets.vectors.panel = of_targets.hess.panel = -1
    open_panels(&panels, &of_targets, job.n_rows, <char*> scratch)
    return total_weight(job, &panels, scratch)


cdef Scale find_divisor(const Job* job, real* scratch) noexcept nogil:
    """What the sum of the losses is divided by. It is multiplied by job.unit, like the weights of the rows."""
    cdef Scale divisor
    if job.mean and job.has_normalizer:
        divisor.mantissa = job.normalizer
    elif job.mean and job.class_weight != NULL and job.targets.panel >= 0:
        divisor.mantissa = total_weight_in_panels(job, scratch)
    elif job.mean:
        divisor.mantissa = total_weight(job, NULL, scratch)
    if job.unit != 1 and (job.has_normalizer or not job.mean):
        frexp(job.unit, &divisor.exponent)
        divisor.exponent -= 1
    return divisor


cdef Scale inverse(const Scale* divisor, double temperature) noexcept nogil:
    """1 / (divisor * temperature), without overflow."""
    cdef double product = divisor.mantissa * temperature
    cdef Scale scale
    cdef int exponent = 0
    if divisor.exponent == 0 and LEAST_DIVISOR < fabs(product) < 1 / LEAST_DIVISOR:
        scale.mantissa = 1 / product
    else:
        product = divisor.mantissa * frexp(temperature, &exponent)
        scale.exponent = -divisor.exponent - exponent
        product = frexp(product, &exponent)
        scale.mantissa = 1 / product
        scale.exponent -= exponent
    return scale


cdef Scale scale_of_hessian(const Job* job) noexcept nogil:
    """job.scale times the factor of the diagonal, divided by the temperature, whose square the derivative has."""
    cdef Scale scale = job.scale
    cdef double temperature = job.temperature, quotient = scale.mantissa * job.hess_factor / temperature
    cdef int exponent = 0
    if scale.exponent == 0 and LEAST_DIVISOR < fabs(quotient) < 1 / LEAST_DIVISOR:
        scale.mantissa = quotient
    else:
        scale.mantissa *= frexp(job.hess_factor, &exponent)
        scale.exponent += exponent
        scale.mantissa /= frexp(temperature, &exponent)
        scale.exponent -= exponent
    return scale


cdef double run_in(Job* job, real* scratch) noexcept nogil:
    """Do a job in the type `real`; returns the loss."""
    cdef real one = 1
    cdef Scale divisor = find_divisor(job, scratch)
    cdef double size = fabs(divisor.mantissa), weight
    cdef Carried[double] weights
    cdef int exponent = 0
    cdef Py_ssize_t i
    if job.class_weight != NULL and job.class_unit == 0 and not 1 / largest_scale(&one) < size < largest_scale(&one):
        job.needs_class_unit = True
        return 0
    weight = 1 if LEAST_DIVISOR < size < 1 / LEAST_DIVISOR else largest_weight(job)
    if weight != 1 and 0 < weight < INFINITY:
        # The weights of rows, or their sum, may leave the range of a double. A power of two brings the largest near 1.
        frexp(weight, &exponent)
        job.unit = ldexp(1, -max(exponent, -MAX_UNIT_EXPONENT))
        divisor = find_divisor(job, scratch)
    if divisor.mantissa == 0 and job.diagnostics.argmax == NULL:
        for i in range(job.n_rows if job.has_grad else 0):
            zero_row(&job.grad, i, job.n_classes)
        for i in range(job.n_rows if job.result == HESSIAN else 0):
            zero_row(&job.hess, i, job.n_classes)
        return 0
    if job.class_unit != 0:
        job.formula.z_loss /= job.class_unit
        if job.has_normalizer or not job.mean:
            frexp(job.class_unit, &exponent)
            divisor.exponent -= exponent - 1
    if divisor.exponent != 0 or not LEAST_DIVISOR < size < 1 / LEAST_DIVISOR:
        divisor.mantissa = frexp(divisor.mantissa, &exponent)
        divisor.exponent += exponent
    if job.formula.weighs:
        weights = carried_sum(<const real*> job.class_weight, job.n_classes)
        job.formula.weights, job.formula.weights_low = weights.sum, weights.lost
    job.scale = inverse(&divisor, job.temperature)
    job.hess_scale = scale_of_hessian(job)
    if job.result == PRODUCT and job.kind != NO_TARGET:
        job.scale = job.hess_scale
    return visit_all(job, &divisor, scratch)


cdef double run(Job* job, void* scratch) noexcept nogil:
    return run_in(job, <double*> scratch) if job.in_double else run_in(job, <float*> scratch)
