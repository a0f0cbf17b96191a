# Rows with numbers out of range: sums of gaps that no double holds, which are held as multiples of FAR_STEP^2, and
# logits that a temperature takes out of the range of the type computed in.


cdef bint may_have_overflowed(const RowArrays[real]* row, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """Whether an infinite sum of gaps may be finite in truth. If not, a logit or an amount is infinite."""
    cdef const real* x = row.x
    cdef const real* t = row.target.distribution
    cdef const real* probs = row.target.probs
    if not are_moderate(x + start, n):
        return True
    if t != NULL:
        return not are_moderate(t + start, n)
    return row.target.class_weight != NULL or not are_moderate(probs, row.target.count)


cdef void add_gaps_in(
    RowSums* sums, const RowArrays[real]* row, const Formula* formula, Py_ssize_t start, Py_ssize_t n, double m,
    double factor, double divisor
) noexcept nogil:
    """The sums of gaps (m factor - x factor) / divisor."""
    cdef Carried[double] cross = Carried[double](0, 0), gaps = cross
    cdef double amount
    cdef const real* x = row.x + start
    cdef const real* t = row.target.distribution
    cdef Py_ssize_t i, c
    if formula.smoothing != 0:
        for c in range(n):
            amount = row.target.class_weight[start + c] if formula.weighs else 1
            if amount != 0:
                gaps.add(amount * ((m * factor - x[c] * factor) / divisor))
    for i in range(n if t != NULL else row.target.count):
        c = i if t != NULL else row.target.indices[i] - start
        if 0 <= c < n:
            amount = t[start + c] if t != NULL else row.target.amount(i, start + c)
            if amount != 0:
                cross.add(amount * ((m * factor - x[c] * factor) / divisor))
    sums.cross, sums.gaps = cross, gaps


cdef void find_far_gaps(
    RowSums* sums, const RowArrays[real]* row, const Formula* formula, Py_ssize_t start, Py_ssize_t n, double m,
    double temperature
) noexcept nogil:
    """The sums of gaps of logits that are not yet divided by `temperature`, nor is m.

    If no double holds them, they are multiplied by FAR_STEP^2. Otherwise that would cost small amounts their digits.
    """
    add_gaps_in(sums, row, formula, start, n, m, 1, temperature)
    sums.far = not (is_finite(sums.cross.sum) and is_finite(sums.gaps.sum))
    if sums.far:
        add_gaps_in(sums, row, formula, start, n, m, FAR_STEP, temperature / FAR_STEP)


cdef void leave_far(RowNumbers* numbers, int k, double cross) noexcept nogil:
    """Set `cross` of row k, which comes multiplied by FAR_STEP^2.

    If no double holds the true one, then mass, cross and unit of the row are multiplied by FAR_STEP, and the weight is
    divided by it, until it fits.
    """
    cdef double back = 1 / FAR_STEP
    numbers.cross[k] = cross * back * back
    if not is_finite(cross) or is_finite(numbers.cross[k]):
        return
    numbers.cross[k] = cross * back
    numbers.unit[k] = 1
    while True:
        numbers.mass[k] *= FAR_STEP
        numbers.unit[k] *= FAR_STEP
        numbers.weight[k] *= back
        if is_finite(numbers.cross[k]):
            return
        numbers.cross[k] = cross


cdef bint leaves_range(const Job* job, const real* x, Py_ssize_t n) noexcept nogil:
    """Whether the temperature makes a finite logit infinite."""
    return job.may_leave_range and finite_size(x, n) / job.transform.temperature > largest_number(x)


cdef struct FarRow:
    # A row that the temperature takes out of range: what bring_back cannot keep in its logits.
    RowSums gaps             # the sums of gaps: see find_far_gaps
    double m                 # the maximum, infinite if no double holds it
    double far_m             # the maximum times FAR_STEP^2
    double label_gap         # from the maximum to the label
    Py_ssize_t rank          # of the label: see count_ahead


cdef void bring_back(
    const Job* job, const RowArrays[real]* row, real* x, int64_t label, FarRow* far
) noexcept nogil:
    """As make_logits, for a row x with logits that leave the range.

    x becomes logits in range with the same softmax, and `far` gets what they cannot tell. If the maximum leaves the
    range, any logit below it is so far below that its exponential is 0.
    """
    cdef real temperature = <real> job.transform.temperature, m, z
    cdef double step = job.transform.temperature / FAR_STEP
    cdef Py_ssize_t n = row.n, c
    for c in range(n if job.has_allowed else 0):
        if row.allowed[c] == 0:
            x[c] = -INFINITY
    m = <real> row_max(x, n)
    find_far_gaps(&far.gaps, row, &job.formula, 0, n, m, job.transform.temperature)
    far.m = m / job.transform.temperature
    far.far_m = m * FAR_STEP / step
    far.label_gap = (<double> m - <double> x[label]) / job.transform.temperature
    far.rank = count_ahead(<const real*> x, n, label)
    for c in range(n):
        z = x[c] / temperature
        if not is_finite(m / temperature) and is_finite(x[c]):
            z = 0 if x[c] == m else -largest_number(x)
        elif not is_finite(z) and is_finite(x[c]):
            z = -largest_number(x)
        x[c] = z
