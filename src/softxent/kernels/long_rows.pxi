# Rows that do not fit into the caches near the core, visited so that memory is read once.
#
# The wide kernel reads the logits twice: for the maximum, then for the exponentials. Here each stretch is read once
# from memory, while the next one is prefetched. Its exponentials are counted in the unit that follows from the maximum
# so far. When all maxima are known, the sums are brought to the unit of the row. Units are powers of two, so nothing is
# rounded and the bits are those of the wide kernel. A stretch where that would not hold is visited again.


cdef enum:
    SIGNIFICAND = 40            # more than the logarithm of 2^53


cdef inline bint is_long(const Job* job, const RowArrays[real]* row) noexcept nogil:
    """Whether visit_long_row takes this row. It must not overwrite the logits before the maximum is known."""
    return (
        row.n > PREFETCHED_ROW and row.result == GRADIENT and row.copy == NULL and row.e != row.x
        and row.target.distribution == NULL and row.diagnostics == NULL and (row.grad == NULL or job.grad.direct)
        and job.formula.smoothing == 0 and not job.by_stretches)


cdef inline bint changes_unit_exactly(const RowUnit[real]* unit, const RowUnit[real]* to, double least) noexcept nogil:
    """Whether exponentials in `unit` differ from those in `to` by a power of two; `least` is the smallest logit.

    From to.lowest on, they are not 0 in `to`, and a significand above it, nothing on the way to them is subnormal.
    """
    if unit.n0 == to.n0 and unit.shift == to.shift:
        return True
    return unit.shift == 0 and to.shift == 0 and least > to.lowest + SIGNIFICAND


cdef void visit_long_row(
    const RowArrays[real]* row, const Formula* formula, const Scale* scale, bint streaming, RowNumbers* numbers, int k
) noexcept nogil:
    """As visit_row; the maximum need not be known."""
    cdef Py_ssize_t n = row.n, length = stretch_length(n), n_stretches = (n + length - 1) // length, i, start, count
    cdef const real* x = row.x
    cdef real* e = row.e
    cdef RowUnit[real] units[MAX_STRETCHES]
    cdef RowUnit[real] unit
    cdef Carried[double] R[MAX_STRETCHES]
    cdef int steps[MAX_STRETCHES]               # a stretch is counted in the unit of the row times 2^steps
    cdef Py_ssize_t left_out[MAX_STRETCHES]
    cdef double least[MAX_STRETCHES]
    cdef RowSums sums, stretch
    cdef Gradient[double] gradient, of_stretch
    cdef RowScaling scaling
    cdef double m = -INFINITY, e_m, largest
    for i in range(n_stretches):
        start, count = i * length, min(length, n - i * length)
        largest = row_range(x + start, count, least + i)
        m = max(m, largest)
        units[i] = RowUnit[real](<real> m)
        find_sparse(&stretch, x + start, 1, &row.target, start, count, m)
        left_out[i] = stretch.argmax
        R[i] = exp_sum(x + start, e + start if e != NULL else NULL, count, left_out[i], units[i], length)
    numbers.m[k] = m
    unit = RowUnit[real](<real> m)
    e_m = lane0(exp(Vec[real](m), unit))
    sums.clear()
    for i in range(n_stretches):
        start, count = i * length, min(length, n - i * length)
        find_target(&stretch, row, formula, start, count, m, 0)
        if stretch.argmax == left_out[i] and changes_unit_exactly(units + i, &unit, least[i]):
            steps[i] = <int> (units[i].n0 - unit.n0)
            # Not R times 2^steps, which may be 0 as a double.
            stretch.R = Carried[double](ldexp(R[i].sum, steps[i]), ldexp(R[i].lost, steps[i]))
        else:
            steps[i] = 0
            stretch.R = exp_sum(x + start, e + start if e != NULL else NULL, count, stretch.argmax, unit, 0)
        add_stretch(&sums, &stretch, start, e_m)
    scaling = finish_row(&sums, row, formula, m, unit, e_m, scale, NULL, &gradient, numbers, k)
    for i in range(n_stretches if row.grad != NULL else 0):
        start, count = i * length, min(length, n - i * length)
        of_stretch = gradient
        of_stretch.factor = ldexp(gradient.factor, steps[i])
        if scaling.unscale != 1 or fabs(of_stretch.factor) < smallest_normal(x):
            exp_sum(x + start, e + start, count, -1, unit, 0)
            of_stretch.factor = gradient.factor
        take_gradient_of(&of_stretch, &scaling, row, start, start + count, streaming)
    if row.grad != NULL:
        end_gradient(&gradient, &scaling, row, &sums, formula, scale, NULL, e_m, numbers, k)
    end_row(row, &sums, NULL, numbers, k)
