# What becomes of logits before the softmax: temperature, capping, classes that are not allowed. The functions take a
# row of the wide kernel or a tile of the narrow one.


cdef void transform_logits(
    const Transform* transform, real* x, real* slope, bint masked, Py_ssize_t n
) noexcept nogil:
    """x becomes the logits of the softmax, and `slope`, unless it is NULL, their derivative times the temperature.

    If masked, `slope` comes with 0 for the classes that are not allowed, and with another number for the others.
    """
    cdef Vec[real] temperature = Vec[real](transform.temperature), cap = Vec[real](transform.cap)
    cdef Vec[real] inverse_cap = Vec[real](1 / transform.cap if transform.cap > 0 else 0)
    cdef Vec[real] zero = Vec[real](0), v, d, allowed
    cdef Py_ssize_t i = 0, count
    while i < n:
        count = min(vec_lanes(x), n - i)
        v = load_first(x + i, count, 0)
        d = Vec[real](1)
        if transform.temperature != 1:
            v = v / temperature
        if transform.cap > 0:
            v = cap * tanh(v * inverse_cap, &d)
        if masked:
            allowed = load_first(slope + i, count, 0)
            v = select_equal(allowed, zero, Vec[real](-INFINITY), v)
            d = select_equal(allowed, zero, zero, d)
        store_first(x + i, count, v)
        if slope != NULL:
            store_first(slope + i, count, d)
        i += vec_lanes(x)


cdef void multiply_by_slope(real* g, const real* slope, Py_ssize_t n) noexcept nogil:
    """g becomes the gradient with respect to the logits as given: 0 where a class is not allowed, even if g is NaN."""
    cdef Py_ssize_t i
    for i in range(n):
        g[i] = g[i] * slope[i] if slope[i] != 0 else 0


cdef bint leaves_range(const Job* job, const real* x, double size) noexcept nogil:
    """Whether the temperature makes a finite logit infinite; `size` is the largest absolute value of these."""
    return size / job.transform.temperature > largest_number(x)


cdef struct FarRow:
    # A row that the temperature takes out of range: what bring_back cannot keep in its logits.
    RowSums gaps             # the sums of gaps, times FAR_STEP^2
    double m                 # the maximum, infinite if no double holds it
    double far_m             # the maximum times FAR_STEP^2
    double label_gap         # from the maximum to the label


cdef void bring_back(
    const Job* job, const RowArrays[real]* row, real* x, real* slope, int64_t label, FarRow* far
) noexcept nogil:
    """As transform_logits, for a row with logits that leave the range.

    x becomes logits in range with the same softmax, and `far` gets what they cannot tell. If the maximum leaves the
    range, any logit below it is so far below that its exponential is 0.
    """
    cdef real temperature = <real> job.transform.temperature, m, z
    cdef double step = job.transform.temperature / FAR_STEP
    cdef Py_ssize_t n = row.n, c
    for c in range(n if job.has_allowed else 0):
        if slope[c] == 0:
            x[c] = -INFINITY
    m = <real> row_max(x, n)
    find_far_gaps(&far.gaps, row, &job.formula, 0, n, m, job.transform.temperature)
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
