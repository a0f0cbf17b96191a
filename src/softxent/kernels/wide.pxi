# The wide kernel: one row at a time, lanes across its classes.
#
# Three sweeps over a row that stays in cache: maximum, exponentials, gradient. row/finish.hpp has the formula. The
# exponentials are written where the gradient will be, or to a scratch row if the gradient is stored past the caches.
# The factor of the gradient takes long to compute. Meanwhile the maximum of the next row is taken. The exponentials are
# multiples of a power of two near e^m (Unit in math/exp.hpp), which cancels in R / e_m and in e_j / S.
#
# In a confident row R is tiny, and p_a - t_a cancels. So if the target gives something to a class a with the largest
# logit, R and T - t_a are summed without a. If it does not, nothing cancels, and e_m is subtracted from the sum of all.
# The share that smoothing gives to each class is too small to cancel with p_a, so the choice of a ignores it.
#
# Long rows are added up in stretches, and the stretches in order, so that several threads can share one row.
#
# Assumes n >= 1 contiguous, aligned elements. The gradient may overwrite the logits it comes from. It may not overlap
# the targets. Never allocates, never raises: NaN and infinities flow through the arithmetic.


cdef enum:
    MAX_STRETCHES = 256
    SCALE_STEP_EXPONENT = 30
    SCALE_STEP = 1 << SCALE_STEP_EXPONENT
    CACHED_PIECE = 2048         # classes that are converted, then transformed
    PREFETCHED_ROW = 65536      # classes: a longer next row would drive this one out of the cache; see long_rows.pxi


cdef inline bint adds_gaps_later(const RowArrays[real]* row, const Formula* formula) noexcept nogil:
    """Whether the gaps of smoothing are added up with the exponentials, which must not overwrite the logits then."""
    return (
        formula.smoothing != 0 and not formula.weighs and row.result == GRADIENT and row.diagnostics == NULL
        and row.e != row.x)


cdef inline void check_gaps(
    RowSums* sums, const RowArrays[real]* row, const Formula* formula, Py_ssize_t start, Py_ssize_t n, double m
) noexcept nogil:
    """Find gaps again, in a unit of their own, if no double holds their sums."""
    if not (is_finite(sums.cross.sum) and is_finite(sums.gaps.sum)) and may_have_overflowed(row, start, n):
        find_far_gaps(sums, row, formula, start, n, m, 1)


cdef inline void find_target(
    RowSums* sums, const RowArrays[real]* row, const Formula* formula, Py_ssize_t start, Py_ssize_t n, double m,
    Py_ssize_t prefetch_distance
) noexcept nogil:
    """What the target adds to the sums of the n classes from `start` on, of a row whose maximum is m.

    visit_stretch adds the gaps of smoothing later, if adds_gaps_later.
    """
    cdef const real* x = row.x + start
    sums.clear()
    if row.target.distribution != NULL:
        find_distribution(
            sums, x, row.target.distribution + start, n, m, row.allowed != NULL, prefetch_distance)
    else:
        find_sparse(sums, x, 1, &row.target, start, n, m)
    if formula.weighs:
        find_weighted_gaps(sums, x, row.target.class_weight + start, n, m)
    elif adds_gaps_later(row, formula):
        return
    elif formula.smoothing != 0:
        sums.gaps = gap_sum(x, n, m)
    check_gaps(sums, row, formula, start, n, m)


cdef inline void visit_stretch(
    RowSums* sums, DiagnosticSums* diagnostics, const RowArrays[real]* row, const Formula* formula, Py_ssize_t start,
    Py_ssize_t n, double m, RowUnit[real] unit, Py_ssize_t prefetch_distance
) noexcept nogil:
    """Target and exponentials of the n classes from `start` on, of a row whose maximum is m."""
    cdef const real* x = row.x + start
    cdef const real* next_stored
    cdef real* e = row.e
    cdef Py_ssize_t label
    if e != NULL:
        e += start
    find_target(sums, row, formula, start, n, m, prefetch_distance)
    # exp_sum may overwrite x, so it comes last.
    if row.vector != NULL:
        visit_vector(sums, diagnostics, row, start, n, unit, prefetch_distance)
    elif row.diagnostics != NULL:
        label = row.target.indices[0]
        sums.R = exp_and_diagnostic_sums(
            x, n, sums.argmax, unit, m, label - start, row.x[label], diagnostics, prefetch_distance)
    elif adds_gaps_later(row, formula):
        sums.R = exp_and_gap_sum(x, e, n, sums.argmax, unit, m, &sums.gaps, prefetch_distance)
        check_gaps(sums, row, formula, start, n, m)
    elif row.next_stored != NULL and prefetch_distance != 0:
        next_stored = row.next_stored
        sums.R = exp_sum_beside(x, e, next_stored + start, n, sums.argmax, unit, prefetch_distance)
    else:
        sums.R = exp_sum(x, e, n, sums.argmax, unit, prefetch_distance)


cdef inline void add_stretch(RowSums* sums, const RowSums* more, Py_ssize_t start, double e_m) noexcept nogil:
    """Add the sums of the next stretch, which begins at the class `start`."""
    cdef double unit = FAR_STEP * FAR_STEP if more.far and not sums.far else 1
    cdef double more_unit = FAR_STEP * FAR_STEP if sums.far and not more.far else 1
    sums.R = sums.R + more.R
    sums.rest = sums.rest + more.rest
    sums.cross = sums.cross * unit + more.cross * more_unit
    sums.gaps = sums.gaps * unit + more.gaps * more_unit
    sums.far = sums.far or more.far
    if more.argmax >= 0 and sums.argmax < 0:
        sums.argmax = start + more.argmax
        sums.t_at_argmax = more.t_at_argmax
    elif more.argmax >= 0:
        sums.R = sums.R + Carried[double](e_m, 0)
        sums.rest = sums.rest + Carried[double](more.t_at_argmax, 0)


cdef inline void add_diagnostic_sums(
    DiagnosticSums* sums, const DiagnosticSums* more, Py_ssize_t start, double e_m
) noexcept nogil:
    """As add_stretch."""
    sums.R = sums.R + more.R
    sums.gaps = sums.gaps + more.gaps
    sums.ahead += more.ahead
    if more.argmax >= 0 and sums.argmax < 0:
        sums.argmax = start + more.argmax
    elif more.argmax >= 0:
        sums.R = sums.R + Carried[double](e_m, 0)


cdef struct RowScaling:
    # What is done to a row besides its Gradient.
    double unscale        # the exponentials are multiplied by it first, if it is not 1
    Py_ssize_t own_class  # the class whose gradient is set by itself, -1 for none
    double own_grad       # that gradient
    int steps             # how often the gradient is multiplied by SCALE_STEP at the end: at once would overflow
    bint is_far           # end_far_gradient makes it of the probabilities


cdef double in_steps(const Scale* scale, double weight, double mass, const real* tag, int* steps) noexcept nogil:
    """scale * weight, divided by SCALE_STEP until neither it nor a gradient is too large; `steps` counts how often."""
    cdef double product = scale.mantissa * weight, limit = largest_scale(tag)
    cdef int exponent = 0, exponent_of_weight = 0, exponent_of_mass = 0, excess
    if scale.exponent == 0 and fabs(product) <= limit and fabs(product * mass) <= limit:
        return product
    if not (is_finite(scale.mantissa) and is_finite(weight) and is_finite(mass)):
        return product
    frexp(mass, &exponent_of_mass)
    product = frexp(scale.mantissa, &exponent) * frexp(weight, &exponent_of_weight)
    exponent += scale.exponent + exponent_of_weight
    excess = exponent + max(exponent_of_mass, 0) - largest_scale_exponent(tag)
    steps[0] = (excess + SCALE_STEP_EXPONENT - 1) // SCALE_STEP_EXPONENT if excess > 0 else 0
    return ldexp(product, exponent - SCALE_STEP_EXPONENT * steps[0])


cdef inline RowScaling finish_row(
    const RowSums* sums, const RowArrays[real]* row, const Formula* formula, double m, RowUnit[real] unit, double e_m,
    const Scale* job_scale, const FarRow* far, Gradient[double]* gradient, RowNumbers* numbers, int k
) noexcept nogil:
    """From the sums of row k: the numbers of its loss and, if its exponentials were kept, what makes its gradient."""
    cdef const RowSums* gaps = sums if far == NULL else &far.gaps
    cdef double low, rest = sums.rest.minus(0, &low), cross = gaps.cross.minus(0, &low), mass = rest + sums.t_at_argmax
    cdef double R = sums.R.minus(e_m if sums.argmax < 0 else 0, &numbers.R_low[k])
    cdef double pull = 0, share = 0, w_a = 0, weight = numbers.weight[k], scale
    cdef const real* x = row.x
    cdef Denominator[real, double] whole
    cdef Factors[double] factors
    cdef RowScaling scaling = RowScaling(1, -1, 0, 0, False)
    if formula.smoothing != 0:
        if formula.weighs and sums.argmax >= 0:
            w_a = row.target.class_weight[sums.argmax]
        share = smooth_sums(formula[0], <double> row.n, w_a, gaps.gaps.minus(0, &low), &mass, &cross, &rest)
    numbers.R[k] = R
    numbers.m[k] = m if far == NULL else far.m
    numbers.m_shifted[k] = m - unit.shift
    numbers.n0[k] = unit.n0
    numbers.mass[k] = mass
    numbers.cross[k] = cross
    if row.e == NULL or (row.result != GRADIENT and row.result != HESSIAN):
        return scaling
    scale = in_steps(job_scale, weight, mass, x, &scaling.steps)
    if formula.z_loss != 0:
        pull = find_pull(x, formula, far, numbers, k)
    whole = Denominator[real, double](R, numbers.R_low[k], e_m)
    mass += pull
    factors = find_factors(x, formula[0], whole, R, mass, rest + pull, share, scale)
    if sums.argmax >= 0 and R < e_m:
        scaling.own_class = sums.argmax
        scaling.own_grad = factors.grad_at_argmax
    if fabs(factors.factor) < smallest_normal(x) and scale * mass != 0:
        # The target has almost no mass. To keep the digits of the factor, the exponentials lose their unit first.
        scaling.unscale = 1 / unit_size(x)
        factors.factor = scale * mass / (whole.sum / unit_size(x))
    elif fabs(factors.factor) > largest_scale(x) or (is_finite(R) and fabs(scale * mass) == INFINITY):
        # The z-loss of logits near the largest number. The last sweep makes the probabilities.
        scaling.is_far, scaling.own_class, scaling.steps = True, -1, 0
        gradient.factor, gradient.offset, gradient.minus = 1 / whole.sum, 0, 0
        gradient.smoothed = False
        return scaling
    gradient.factor, gradient.offset, gradient.minus = factors.factor, factors.offset, factors.minus
    gradient.smoothed = formula.smoothing != 0 and not formula.weighs
    return scaling


cdef inline bint is_allowed(const unsigned char* allowed, Py_ssize_t c) noexcept nogil:
    return allowed == NULL or allowed[c] != 0


cdef inline void subtract_sparse(
    const Gradient[double]* gradient, real* g, Py_ssize_t stride, Py_ssize_t n, const Target[real]* target,
    const unsigned char* allowed
) noexcept nogil:
    """Subtract the entries of a sparse target from a gradient whose n classes are `stride` apart.

    Those of classes that are not allowed are left out; if `allowed` is NULL, all are.
    """
    cdef Py_ssize_t i, c
    for i in range(target.count):
        c = target.indices[i]
        # Indices were checked, but another thread may have changed them since.
        if 0 <= c < n and is_allowed(allowed, c):
            g[c * stride] = <real> lane0(gradient.minus_target(
                Vec[real](g[c * stride]), Vec[real](target.amount(i, c))))


cdef inline bint is_converted_now(const RowScaling* scaling, const RowArrays[real]* row) noexcept nogil:
    """Whether the gradient is converted as it is stored. Then the exponentials stay in row.grad, which is scratch."""
    return row.converted_grad.data != NULL and scaling.steps == 0 and not scaling.is_far


cdef inline const real* swept_target(const RowArrays[real]* row, Gradient[double]* gradient) noexcept nogil:
    """The target that the last sweep over a row subtracts, which `gradient` is made to multiply."""
    if row.spread == NULL:
        return row.target.distribution
    gradient.minus = gradient.offset
    return row.spread


cdef inline void take_gradient_of(
    const Gradient[double]* gradient, const RowScaling* scaling, const RowArrays[real]* row, Py_ssize_t start,
    Py_ssize_t stop, bint streaming
) noexcept nogil:
    """The gradient of the classes [start, stop), but for what set_own_classes does.

    If that is far, row.e gets the probabilities: the gradient may overwrite the target, which end_far_gradient needs.
    """
    cdef real* e = row.e
    cdef real* grad = row.e if scaling.is_far else row.grad
    cdef Gradient[double] swept = gradient[0]
    cdef const real* t = swept_target(row, &swept)
    if is_converted_now(scaling, row):
        take_converted_gradient(
            swept, scaling.unscale, e, t, row.allowed, row.converted_grad, start, stop)
    else:
        take_gradient(swept, scaling.unscale, e, t, row.allowed, grad, start, stop, streaming and not scaling.is_far)


cdef void store_own_classes(const RowScaling* scaling, const RowArrays[real]* row, Py_ssize_t label) noexcept nogil:
    """Convert what set_own_classes has set, or the whole gradient if that is not converted yet."""
    cdef const real* grad = row.grad
    cdef const Layout* layout = row.converted_grad.layout
    cdef char* stored = row.converted_grad.data
    if not is_converted_now(scaling, row):
        write_row(stored, grad, layout, row.n)
        return
    if label >= 0:
        write_row(stored + label * layout.class_stride, grad + label, layout, 1)
    if scaling.own_class >= 0:
        write_row(stored + scaling.own_class * layout.class_stride, grad + scaling.own_class, layout, 1)


cdef inline void set_own_classes(
    Gradient[double]* gradient, const RowScaling* scaling, const RowArrays[real]* row
) noexcept nogil:
    """Finish the gradient at classes with a target, and at the one that is set by itself."""
    cdef real* grad = row.grad
    cdef Gradient[double] swept = gradient[0]
    cdef const real* t = swept_target(row, &swept)
    cdef Vec[real] at_label
    cdef Py_ssize_t label = -1
    cdef int step
    if is_converted_now(scaling, row) and row.target.count > 0 and is_allowed(row.allowed, row.target.indices[0]):
        label = row.target.indices[0]           # the only entry: see converts_stores
        at_label = swept.of(Vec[real](grad[label]))
        if t != NULL:
            at_label = swept.minus_target(at_label, Vec[real](t[label]))
        grad[label] = <real> lane0(at_label)
    subtract_sparse(gradient, grad, 1, row.n, &row.target, row.allowed)
    if scaling.own_class >= 0:
        grad[scaling.own_class] = <real> scaling.own_grad
    for step in range(scaling.steps):
        multiply(grad, SCALE_STEP, row.n)
    if row.converted_grad.data != NULL:
        store_own_classes(scaling, row, label)


cdef inline void end_gradient(
    Gradient[double]* gradient, const RowScaling* scaling, const RowArrays[real]* row, const RowSums* sums,
    const Formula* formula, const Scale* scale, const FarRow* far, double e_m, const RowNumbers* numbers, int k
) noexcept nogil:
    """What the last sweep leaves to do."""
    cdef const real* x = row.x
    cdef const real* p = row.grad if row.hess != NULL else row.e
    if scaling.is_far:
        end_far_gradient(find_far_numbers(x, formula, scale, far, e_m, numbers, k), row, sums, formula, p)
    else:
        set_own_classes(gradient, scaling, row)


cdef void take_hessian_of(
    const Gradient[double]* gradient, const RowScaling* scaling, const RowResult* result, const RowArrays[real]* row,
    Py_ssize_t start, Py_ssize_t stop, bint streaming
) noexcept nogil:
    """As take_gradient_of, and the diagonal of the Hessian."""
    cdef real* e = row.e
    cdef real* g = row.grad
    cdef real* h = row.hess
    cdef Gradient[double] swept = gradient[0]
    cdef const real* t = swept_target(row, &swept)
    take_gradient_and_hessian(
        swept, result.hessian, scaling.unscale, e, t, row.allowed, g, h, start, stop, streaming)


cdef inline void end_row(
    const RowArrays[real]* row, const RowSums* sums, const FarRow* far, RowNumbers* numbers, int k
) noexcept nogil:
    """Bring the numbers of the loss of row k into range, after everything else was made of them."""
    if (sums.far if far == NULL else far.gaps.far) and row.result != LOGSUMEXP:
        leave_far(numbers, k, numbers.cross[k])


cdef inline Py_ssize_t stretch_length(Py_ssize_t n) noexcept nogil:
    """How many classes make a stretch. It depends on n alone; stretches come in fours, to share them out evenly."""
    cdef Py_ssize_t fours = min((n + 4 * STRETCH - 1) // (4 * STRETCH), <Py_ssize_t> (MAX_STRETCHES // 4))
    cdef Py_ssize_t length = (n + 4 * fours - 1) // (4 * fours)
    return n if n <= STRETCH else (length + 63) // 64 * 64


cdef inline void visit_row(
    const RowArrays[real]* row, const Formula* formula, const Scale* scale, bint streaming,
    Py_ssize_t prefetch_distance, const real* next_row, const FarRow* far, RowNumbers* numbers, int k
) noexcept nogil:
    """Visit one row. It is row k of `numbers`, which has its maximum and weight already.

    The gradient is multiplied by `scale` and by the weight. The maximum of `next_row`, unless that is NULL, becomes
    numbers.m[k + 1]; see finds_next_top. The sums of gaps are those of `far`, unless that is NULL.
    """
    cdef double m = numbers.m[k]
    cdef RowUnit[real] unit = RowUnit[real](<real> m)
    cdef double e_m = lane0(exp(Vec[real](m), unit))
    cdef RowSums sums[2]
    cdef DiagnosticSums diagnostics
    cdef Py_ssize_t start = 0, length = stretch_length(row.n)
    cdef Gradient[double] gradient
    cdef RowResult result
    cdef RowScaling scaling
    if row.result != GRADIENT:
        begin_result(row, m, unit, &result)
    while start < row.n:
        visit_stretch(
            sums + (start > 0), &diagnostics if start > 0 else row.diagnostics, row, formula, start,
            min(length, row.n - start), m, unit, prefetch_distance)
        if start > 0:
            add_stretch(sums, sums + 1, start, e_m)
            if row.diagnostics != NULL:
                add_diagnostic_sums(row.diagnostics, &diagnostics, start, e_m)
        start += length
    scaling = finish_row(sums, row, formula, m, unit, e_m, scale, far, &gradient, numbers, k)
    if row.result != GRADIENT:
        finish_result(row, formula, scale, far, e_m, numbers, k, &result)
    if next_row != NULL:
        # The gradient must wait for its factor. This need not.
        numbers.m[k + 1] = row_max(next_row, row.n)
        if finds_next_top(row.result):
            numbers.top[k + 1] = find_top(next_row, row.n, numbers.m[k + 1])
    if row.hess != NULL:
        finish_hessian(row, formula, far, e_m, scaling.unscale, numbers, k, sums[0].argmax, &result)
        take_hessian_of(&gradient, &scaling, &result, row, 0, row.n, streaming)
        end_gradient(&gradient, &scaling, row, sums, formula, scale, far, e_m, numbers, k)
        end_hessian(row, &result)
    elif row.grad != NULL and row.result != GRADIENT:
        take_row_result(row, &result, 0, row.n, streaming)
    elif row.grad != NULL:
        take_gradient_of(&gradient, &scaling, row, 0, row.n, streaming)
        end_gradient(&gradient, &scaling, row, sums, formula, scale, far, e_m, numbers, k)
    end_row(row, sums, far, numbers, k)


cdef void share_row(
    const RowArrays[real]* row, const Formula* formula, const Scale* scale, bint streaming, int n_threads,
    const FarRow* far, RowNumbers* numbers, int k
) noexcept nogil:
    """As visit_row, with the stretches shared out over the threads."""
    cdef Py_ssize_t n = row.n, length = stretch_length(n), n_stretches = (n + length - 1) // length, i
    cdef RowSums stretches[MAX_STRETCHES]
    cdef DiagnosticSums of_stretches[MAX_STRETCHES]
    cdef RowSums sums
    cdef Gradient[double] gradient
    cdef RowResult result
    cdef RowScaling scaling
    cdef double m = numbers.m[k]
    cdef RowUnit[real] unit = RowUnit[real](<real> m)
    cdef double e_m = lane0(exp(Vec[real](m), unit))
    for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
        visit_stretch(
            stretches + i, of_stretches + i, row, formula, i * length, min(length, n - i * length), m, unit, 0)
    sums.clear()
    for i in range(n_stretches):
        add_stretch(&sums, stretches + i, i * length, e_m)
    if row.diagnostics != NULL:
        row.diagnostics[0] = of_stretches[0]
        for i in range(1, n_stretches):
            add_diagnostic_sums(row.diagnostics, of_stretches + i, i * length, e_m)
    scaling = finish_row(&sums, row, formula, m, unit, e_m, scale, far, &gradient, numbers, k)
    if row.hess != NULL:
        finish_hessian(row, formula, far, e_m, scaling.unscale, numbers, k, sums.argmax, &result)
        for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
            take_hessian_of(&gradient, &scaling, &result, row, i * length, min((i + 1) * length, n), streaming)
            if streaming:
                fence_streams()
        end_gradient(&gradient, &scaling, row, &sums, formula, scale, far, e_m, numbers, k)
        end_hessian(row, &result)
    elif row.grad != NULL and row.result != GRADIENT:
        begin_result(row, m, unit, &result)
        finish_result(row, formula, scale, far, e_m, numbers, k, &result)
        for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
            take_row_result(row, &result, i * length, min((i + 1) * length, n), streaming)
            if streaming:
                fence_streams()
    elif row.grad != NULL:
        for i in prange(n_stretches, num_threads=n_threads, schedule="static"):
            take_gradient_of(&gradient, &scaling, row, i * length, min((i + 1) * length, n), streaming)
            if streaming:
                fence_streams()
        end_gradient(&gradient, &scaling, row, &sums, formula, scale, far, e_m, numbers, k)
    end_row(row, &sums, far, numbers, k)


cdef void skip_row(const Job* job, Py_ssize_t i, RowNumbers* numbers, int k) noexcept nogil:
    """Set the numbers and the gradient of a row of weight 0; its logits are not read."""
    numbers.R[k] = numbers.R_low[k] = numbers.m[k] = numbers.m_shifted[k] = numbers.n0[k] = 0
    numbers.mass[k] = numbers.cross[k] = 0
    if job.has_grad:
        zero_row(&job.grad, i, job.n_classes)
    if job.result == HESSIAN:
        zero_row(&job.hess, i, job.n_classes)


cdef Taken take_stretch(
    const Job* job, const RowArrays[real]* row, const char* source, real* slope, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    """Make the logits of the softmax for the classes [start, stop), from `source` to row.copy, if there is one."""
    cdef const real* logits = row.x
    cdef real* x = row.copy
    cdef const unsigned char* allowed = row.allowed
    cdef Taken taken, piece
    cdef Converted given
    cdef Py_ssize_t end
    if job.has_probs:
        allowed = NULL
    if x != NULL and job.logits.loadable:
        given.layout, given.data = &job.logits, <char*> source
        return take_logits(job.transform, given, allowed, x, slope, start, stop)
    taken.all_finite = True
    if x == NULL:
        taken.m = row_max(logits + start, stop - start)
        return taken
    taken.m = -INFINITY
    while start < stop:             # a piece at a time, which stays in the cache after it was converted
        end = min(start + CACHED_PIECE, stop)
        read_row(x + start, source + start * job.logits.class_stride, &job.logits, end - start)
        piece = make_logits(job.transform, logits, allowed, x, slope, start, end)
        taken.m = max(taken.m, piece.m)
        taken.all_finite &= piece.all_finite
        start = end
    return taken


cdef Taken take_row(
    const Job* job, const RowArrays[real]* row, const char* source, real* slope, int n_threads
) noexcept nogil:
    """As take_stretch, for the whole row, which is shared out over the threads."""
    cdef Py_ssize_t n = row.n, length = stretch_length(n), n_stretches = (n + length - 1) // length, k
    cdef Taken[MAX_STRETCHES] stretches
    cdef Taken taken
    if n_threads == 1:
        return take_stretch(job, row, source, slope, 0, n)
    for k in prange(n_stretches, num_threads=n_threads, schedule="static"):
        stretches[k] = take_stretch(job, row, source, slope, k * length, min((k + 1) * length, n))
    taken = stretches[0]
    for k in range(1, n_stretches):
        taken.m = max(taken.m, stretches[k].m)
        taken.all_finite &= stretches[k].all_finite
    return taken


cdef inline void place_allowed(const Job* job, Py_ssize_t i, real* scratch, RowArrays[real]* row) noexcept nogil:
    """Fill in the allowed classes of row i: where they are, or copied to `scratch` if they are not side by side."""
    cdef const char* source = row_address(&job.allowed, i)
    cdef unsigned char* copied = <unsigned char*> scratch
    cdef Py_ssize_t c
    row.allowed = <const unsigned char*> source
    if not job.allowed.packed:
        row.allowed = copied
        for c in range(row.n):
            copied[c] = source[c * job.allowed.class_stride] != 0


cdef inline void place_row(
    const Job* job, Py_ssize_t i, const int64_t* label, const real* one, real* scratch, RowArrays[real]* row
) noexcept nogil:
    """Fill in where the numbers of row i are, and its target. What cannot be used in place is read into `scratch`."""
    cdef Py_ssize_t n = job.n_classes
    cdef real* t = scratch + TARGET_ROW * n
    row.n = n
    row.x = <real*> row_address(&job.logits, i)
    row.converted_grad.data = NULL
    row.grad = row.e = row.copy = NULL
    row.allowed = NULL
    row.diagnostics = NULL
    row.vector = NULL
    row.has_probs = False
    row.hess = NULL
    row.spread = <const real*> job.class_weight if job.formula.weighs else NULL
    row.result = job.result
    row.next_stored = NULL
    if job.has_grad:
        row.grad = <real*> row_address(&job.grad, i) if job.grad.direct else scratch
        if not job.keeps_logits:
            row.e = scratch if job.streaming or job.grad_is_input else row.grad
    if job.converts_stores:
        row.converted_grad.layout, row.converted_grad.data = &job.grad, row_address(&job.grad, i)
    if not job.logits.direct or job.transforms:
        row.copy = scratch if row.e == NULL else row.e
        row.x = row.copy
        if row.e != NULL and row.e == row.grad and job.grad.direct and i + 1 < job.n_rows:
            row.next_stored = <real*> row_address(&job.grad, i + 1)
    read_target(job, i, label, one, &row.target)
    if job.result == HESSIAN:
        row.hess = <real*> row_address(&job.hess, i) if job.hess.direct else scratch + HESSIAN_ROW * n
        row.hess_scale = &job.hess_scale
        if row.e == row.grad:                   # the diagonal is not stored past the caches
            row.next_stored = row.hess
    if job.result == PRODUCT:
        row.has_probs = job.has_probs
        row.vector = place_vector(job, i, scratch + VECTOR_ROW * n)
    if job.has_allowed:
        place_allowed(job, i, scratch + ALLOWED_ROW * n, row)
    if job.kind == DISTRIBUTIONS:
        if job.targets.direct and not job.builds_target:
            t = <real*> row_address(&job.targets, i)
        else:
            read_row(t, row_address(&job.targets, i), &job.targets, n)
        row.target.distribution = t
    if job.builds_target:
        if job.kind == LABELS:
            build_label_row(t, n, label[0], job.built_smoothing, row.allowed, row.target.class_weight)
        else:
            build_target(&row.target, row.allowed, job.built_smoothing, t, n)
        if job.masks_target:
            mask_target(t, row.allowed, n)
        row.target.distribution = t
        row.target.count = 0


cdef inline bint is_far(const Job* job, const RowArrays[real]* row, const char* source) noexcept nogil:
    """Whether the temperature takes a logit out of range.

    If so, row.copy has the logits as they were given. If they are not direct, it has them anyway.
    """
    cdef const real* logits = <const real*> source
    if not job.logits.direct:
        read_row(row.copy, source, &job.logits, row.n)
        logits = row.copy
    if not leaves_range(job, logits, row.n):
        return False
    if job.logits.direct:
        read_row(row.copy, source, &job.logits, row.n)
    return True


cdef const FarRow* take_transformed(
    const Job* job, const RowArrays[real]* row, const char* source, const int64_t* label, real* slope, int n_threads,
    FarRow* far, double* m
) noexcept nogil:
    """As take_row, also for a row that the temperature takes out of range. Then `far` is returned, else NULL.

    That shows in the logits that are made. If they overwrite those they are made from, it has to be known before.
    """
    cdef const real* x = row.x
    cdef bint in_place = row.copy == <real*> source
    cdef bint goes_far = in_place and job.may_leave_range and is_far(job, row, source)
    cdef Taken taken
    if not goes_far:
        taken = take_row(job, row, source, slope, n_threads)
        if job.may_leave_range and not (in_place or taken.all_finite):
            goes_far = is_far(job, row, source)
            if not (goes_far or job.logits.direct):
                taken = take_row(job, row, source, slope, n_threads)
    if goes_far:
        bring_back(job, row, row.copy, label[0] if job.kind == LABELS else 0, far)
        taken.m = row_max(x, row.n)
    m[0] = taken.m
    return far if goes_far else NULL


cdef inline bint visit_row_of(
    const Job* job, Py_ssize_t i, int64_t* label, real* scratch, int n_threads, RowNumbers* numbers, int k,
    bint next_counts, bint m_is_known
) noexcept nogil:
    """Visit row i, which is row k of `numbers`. Its weight is there already, and its label, if any, in `label`.

    `m_is_known` says that visit_row found its maximum with the previous row. True is returned if it found that of row
    k + 1. `scratch` is
    for what cannot be loaded or stored in place: see ScratchRow in job.hpp.
    """
    cdef Py_ssize_t n = job.n_classes, prefetch_distance = 0
    cdef real one = 1
    cdef RowArrays[real] row
    cdef DiagnosticSums diagnostics
    cdef FarRow far_row
    cdef const FarRow* far = NULL
    cdef const char* source = row_address(&job.logits, i)
    cdef const real* x
    cdef real* slope = scratch + SLOPE_ROW * n if job.has_slope else NULL
    cdef real* next_row = NULL
    cdef bint top_is_known
    if numbers.weight[k] == 0:
        skip_row(job, i, numbers, k)
        return False
    place_row(job, i, label, &one, scratch, &row)
    x = row.x
    if job.diagnostics.argmax != NULL or job.result == PRODUCT:
        row.diagnostics = &diagnostics
    if job.prefetching and job.logits.loadable and n <= PREFETCHED_ROW and i + 1 < job.n_rows:
        prefetch_distance = <real*> row_address(&job.logits, i + 1) - x
    if is_long(job, &row):
        visit_long_row(&row, &job.formula, &job.scale, job.streaming, numbers, k)
        return False
    top_is_known = m_is_known and finds_next_top(job.result)
    if row.copy == NULL:
        if next_counts and job.has_grad and n <= STRETCH:
            next_row = <real*> row_address(&job.logits, i + 1)
        if not m_is_known and not job.by_stretches:
            m_is_known = True
            numbers.m[k] = row_max(x, n)
    if not m_is_known:
        far = take_transformed(job, &row, source, label, slope, n_threads, &far_row, &numbers.m[k])
    if job.result == LOGSUMEXP and fabs(numbers.m[k]) >= PLAIN_LSE_FROM:
        label[0] = -1
    elif job.kind == NO_TARGET or job.result == PRODUCT:
        row.top = numbers.top[k] if top_is_known else find_top(row.x, n, numbers.m[k])
        if job.kind == NO_TARGET:
            label[0] = row.top
    if far != NULL and job.result == LOG_SOFTMAX:
        row.grad = NULL
    if job.by_stretches:
        share_row(&row, &job.formula, &job.scale, job.streaming, n_threads, far, numbers, k)
    else:
        visit_row(&row, &job.formula, &job.scale, job.streaming, prefetch_distance, next_row, far, numbers, k)
    if job.diagnostics.argmax != NULL:
        find_diagnostics(&row, label[0], far, numbers, k)
    if job.result == LOGSUMEXP:
        set_lse(&row, numbers, k)
    if far != NULL and job.result == LOG_SOFTMAX:
        row.grad = <real*> row_address(&job.grad, i) if job.grad.direct else scratch
        take_far_log_probabilities(job, &row, source, numbers, k, row.grad)
    if job.has_grad and job.has_slope:
        multiply_by_slope(row.grad, slope, n)
    if job.has_grad and not (job.grad.direct or job.converts_stores):
        write_row(row_address(&job.grad, i), row.grad, &job.grad, n)
    if job.result == HESSIAN and not job.hess.direct:
        write_row(row_address(&job.hess, i), <const real*> row.hess, &job.hess, n)
    return next_row != NULL
