# Rows with numbers out of range: sums of gaps that no double holds, which are held as multiples of FAR_STEP^2, logits
# that a temperature takes out of the range of the type computed in, and derivatives of a z-loss or of vectors that are
# too large for it.


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


# A derivative that is out of range, or that is made of numbers out of range, is computed class by class, from numbers
# that are Scales. Only its value is rounded to the type computed in.

cdef Scale scale_of(double x) noexcept nogil:
    cdef Scale scale
    scale.mantissa = frexp(x, &scale.exponent)
    return scale


cdef Scale times(const Scale& a, const Scale& b) noexcept nogil:
    cdef Scale product
    product.mantissa, product.exponent = a.mantissa * b.mantissa, a.exponent + b.exponent
    return product


cdef Scale plus(const Scale& a, const Scale& b) noexcept nogil:
    cdef Scale total
    if a.mantissa == 0 or b.mantissa == 0:
        return b if a.mantissa == 0 else a
    total.exponent = max(a.exponent, b.exponent)
    total.mantissa = ldexp(a.mantissa, a.exponent - total.exponent) + ldexp(b.mantissa, b.exponent - total.exponent)
    return total


cdef double value_of(const Scale& a) noexcept nogil:
    return ldexp(a.mantissa, a.exponent)


cdef FarNumbers find_far_numbers(
    const real* tag, const Formula* formula, const Scale* scale, const FarRow* far, double e_m,
    const RowNumbers* numbers, int k
) noexcept nogil:
    """The numbers of the derivatives of row k, whose scale without its weight is `scale`."""
    cdef FarNumbers found
    cdef Scale lse
    found.scale = times(scale[0], scale_of(numbers.weight[k]))
    found.mass = scale_of(numbers.mass[k])
    found.pull = found.pull_of_mass = scale_of(0)
    if formula.z_loss != 0:
        lse = scale_of(
            numbers.m[k] + log1p_rest(tag, numbers.R[k], numbers.R_low[k], numbers.m_shifted[k], numbers.n0[k]))
        if far != NULL and not is_finite(lse.mantissa):
            lse = scale_of(far.far_m)
            lse.exponent += 2 * FAR_EXPONENT
        found.pull = scale_of(formula.z_loss)
        found.pull.exponent += 1
        found.pull_of_mass = times(found.pull, lse)
        found.mass = plus(found.mass, found.pull_of_mass)
    found.whole = numbers.R[k] + e_m
    found.not_top = numbers.R[k] / found.whole
    return found


cdef Scale sum_of(const real* t, Py_ssize_t n, Py_ssize_t left_out) noexcept nogil:
    """The sum of a distribution, which may be too large for a double, without the class `left_out`."""
    cdef Carried[double] total = Carried[double](0, 0)
    cdef double low
    cdef Py_ssize_t c
    for c in range(n):
        if c != left_out:
            total.add(t[c] * FAR_STEP)
    return times(scale_of(total.minus(0, &low)), scale_of(1 / FAR_STEP))


cdef Scale mass_of_far(const FarNumbers& far, const RowArrays[real]* row) noexcept nogil:
    """far.mass, also where the sum of a distribution is too large for a double."""
    cdef const real* t = row.target.distribution
    if t == NULL or is_finite(far.mass.mantissa):
        return far.mass
    return plus(sum_of(t, row.n, -1), far.pull_of_mass)


cdef void end_far_gradient(
    const FarNumbers& far, const RowArrays[real]* row, const RowSums* sums, const Formula* formula, const real* p
) noexcept nogil:
    """Make the gradient of the probabilities p, which it may overwrite."""
    cdef real* g = row.grad
    cdef const real* t = row.target.distribution
    cdef const real* spread = row.spread
    cdef double low, share = 0, others = row.n - 1
    cdef Scale own, mass = mass_of_far(far, row), rest = scale_of(sums.rest.minus(0, &low))
    cdef Py_ssize_t c, i
    cdef bint has_own = sums.argmax >= 0 and far.not_top < 0.5
    if t != NULL and not is_finite(rest.mantissa):
        rest = sum_of(t, row.n, sums.argmax)
    if formula.smoothing != 0:
        share = formula.smoothing / row.n
        if row.spread != NULL:
            others = formula.weights - (row.spread[sums.argmax] if sums.argmax >= 0 else 0)
        else:
            share *= value_of(rest) + sums.t_at_argmax
        rest = plus(times(rest, scale_of(1 - formula.smoothing)), scale_of(share * others))
    if has_own:
        # As find_factors: nothing cancels here.
        own = plus(plus(rest, far.pull_of_mass), times(mass, scale_of(-far.not_top)))
    for c in range(row.n):
        if is_allowed(row.allowed, c):
            g[c] = <real> value_of(times(far.scale, plus(
                times(mass, scale_of(p[c])),
                scale_of(-share * (spread[c] if spread != NULL else 1)
                         - ((1 - formula.smoothing) * t[c] if t != NULL else 0)))))
        else:
            g[c] = 0
    for i in range(row.target.count):
        c = row.target.indices[i]
        if 0 <= c < row.n and is_allowed(row.allowed, c):
            g[c] = <real> (g[c] - value_of(times(
                far.scale, scale_of((1 - formula.smoothing) * row.target.amount(i, c)))))
    if has_own:
        g[sums.argmax] = <real> value_of(times(far.scale, own))
    if row.converted_grad.data != NULL:
        write_row(row.converted_grad.data, <const real*> g, row.converted_grad.layout, row.n)


cdef void end_far_hessian(const FarNumbers& far, const RowArrays[real]* row, Py_ssize_t top) noexcept nogil:
    """Make the diagonal of the Hessian of the probabilities that are in row.hess."""
    cdef real* h = row.hess
    cdef Scale mass = mass_of_far(far, row)
    cdef double p, not_p
    cdef Py_ssize_t c
    for c in range(row.n):
        p = h[c]
        not_p = far.not_top if c == top and far.not_top < 0.5 else 1 - p
        h[c] = <real> value_of(times(far.scale, plus(
            times(mass, scale_of(p * not_p)), times(times(far.pull, scale_of(p)), scale_of(p)))))


cdef void find_far_mean(FarNumbers* far, const RowArrays[real]* row) noexcept nogil:
    """The mean of the vector, relative to its value at the class with the largest logit."""
    cdef const real* e = row.x if row.has_probs else <const real*> row.e
    cdef Carried[double] total = Carried[double](0, 0)
    cdef double at_top = row.vector[row.top], low
    cdef Py_ssize_t c
    for c in range(row.n):
        if e[c] != 0:
            total.add(e[c] / far.whole * (<double> row.vector[c] / 4 - at_top / 4))
    far.quarter_mean = total.minus(0, &low)


cdef void take_far_product(
    const FarNumbers& far, const RowArrays[real]* row, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    """The product of a Hessian with the vector, from the exponentials, for the classes [start, stop)."""
    cdef const real* e = row.x if row.has_probs else <const real*> row.e
    cdef const real* v = row.vector
    cdef real* g = row.grad
    cdef double at_top = v[row.top]
    cdef Scale mean = plus(scale_of(at_top), times(scale_of(4), scale_of(far.quarter_mean)))
    cdef Scale of_pull = times(far.pull, mean), mass = mass_of_far(far, row), gap
    cdef Py_ssize_t c
    for c in range(start, stop):
        if e[c] == 0 or not is_allowed(row.allowed, c):
            g[c] = 0
        else:
            gap = times(scale_of(4), scale_of(<double> v[c] / 4 - at_top / 4 - far.quarter_mean))
            g[c] = <real> value_of(times(
                times(far.scale, scale_of(e[c] / far.whole)), plus(times(mass, gap), of_pull)))
