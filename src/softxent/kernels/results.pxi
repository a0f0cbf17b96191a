# Results besides the gradient, as the kernels make them: see row/results.hpp.


cdef inline double not_allowed(Result result) noexcept nogil:
    """The result of a class that is not allowed."""
    return -INFINITY if result == LOG_SOFTMAX else 0


cdef inline bint finds_next_top(Result result) noexcept nogil:
    """Whether visit_row finds numbers.top of the next row. (For a PRODUCT, that would take longer than to wait.)"""
    return result == SOFTMAX or result == LOG_SOFTMAX


cdef inline void begin_result(
    const RowArrays[real]* row, double m, RowUnit[real] unit, RowResult* result
) noexcept nogil:
    """What can be found of a result before the exponentials of a row whose maximum is m."""
    cdef const real* x = row.x
    if row.result == SOFTMAX:
        exact_e_m(x, m - unit.shift, unit.n0, &result.e_m, &result.e_m_low)


cdef void visit_vector(
    RowSums* sums, DiagnosticSums* diagnostics, const RowArrays[real]* row, Py_ssize_t start, Py_ssize_t n,
    RowUnit[real] unit, Py_ssize_t prefetch_distance
) noexcept nogil:
    """Exponentials, unless the caller has them, and the sum of a PRODUCT, of the n classes from `start` on."""
    cdef const real* x = row.x + start
    cdef const real* e = x
    cdef const real* v = row.vector + start
    cdef real* made
    cdef double at_top = row.vector[row.top]
    diagnostics.R = Carried[double](0, 0)
    diagnostics.argmax = -1
    if row.has_probs:
        diagnostics.gaps = product_sum(e, v, n, at_top)
    else:
        made = row.e + start
        e = made
        sums.R = exp_and_product_sums(x, made, v, n, sums.argmax, unit, at_top, prefetch_distance, &diagnostics.gaps)


cdef double find_pull(
    const real* tag, const Formula* formula, const FarRow* far, RowNumbers* numbers, int k
) noexcept nogil:
    """What a z-loss adds to the mass of row k, whose logarithm is found."""
    cdef double pull
    if formula.z_loss == 0:
        return 0
    pull = 2 * formula.z_loss * find_log(tag, numbers, k)
    if far != NULL and not is_finite(pull):
        pull = 2 * formula.z_loss * far.far_m / FAR_STEP / FAR_STEP
    return pull


cdef void finish_product(
    const RowArrays[real]* row, const Formula* formula, const Scale* scale, const FarRow* far, double e_m,
    RowNumbers* numbers, int k, RowResult* result
) noexcept nogil:
    """The numbers of the product of row k, whose sum with the vector is in row.diagnostics."""
    cdef const real* x = row.x
    cdef double R = numbers.R[k], R_low = numbers.R_low[k], mass = numbers.mass[k], low, factor
    cdef double unit = 1, products = row.diagnostics.gaps.minus(0, &low), pull
    if row.has_probs:
        R = R_low = 0
        e_m = 1
    result.steps = 0
    factor = in_steps(scale, numbers.weight[k], mass, x, &result.steps)
    pull = factor * 2 * formula.z_loss
    mass += find_pull(x, formula, far, numbers, k)
    if not row.has_probs and fabs(factor * mass) < smallest_normal(x) * (R + e_m):
        # As in finish_row: there is almost no mass.
        unit = unit_size(x)
    result.unscale = 1 / unit
    result.product = find_product(
        x, Denominator[real, double](R / unit, R_low / unit, e_m / unit), products / unit,
        <double> row.vector[row.top], factor * mass, pull)
    result.product.pulled = formula.z_loss != 0
    result.is_far = (
        is_far_derivative(x, factor * mass, pull) or is_far_derivative(x, 0, result.product.pull)
        or not fabs(result.product.shift) <= largest_shift(x))
    if result.is_far:
        result.far = find_far_numbers(x, formula, scale, far, e_m, numbers, k)
        if row.has_probs:
            result.far.whole = 1
        find_far_mean(&result.far, row)


cdef void finish_hessian(
    const RowArrays[real]* row, const Formula* formula, const FarRow* far, double e_m, double unscale,
    RowNumbers* numbers, int k, Py_ssize_t top, RowResult* result
) noexcept nogil:
    """The numbers of the Hessian of row k. `top` is the class with the largest logit that R leaves out, or -1."""
    cdef const real* e = row.e
    cdef double R = numbers.R[k], R_low = numbers.R_low[k], mass = numbers.mass[k], factor
    cdef Py_ssize_t n = row.n
    result.top = top
    if top < 0 and R < e_m:
        result.top = find_top(e, n, e_m)
    if top < 0 and has_lost_digits(e, R, e_m, n):
        R = rest_of(<const real*> e, n, result.top).minus(0, &R_low)
    result.steps = 0
    factor = in_steps(row.hess_scale, numbers.weight[k], mass, e, &result.steps)
    mass += find_pull(e, formula, far, numbers, k)
    result.after = 1
    result.is_far = is_far_derivative(e, factor * mass, factor * 2 * formula.z_loss)
    if result.is_far:
        # end_far_hessian makes the Hessian of the probabilities.
        result.far = find_far_numbers(e, formula, row.hess_scale, far, e_m, numbers, k)
        result.far.not_top = R / (R + e_m)
        result.hessian.factor, result.hessian.minus_inverse = 1 / ((R + e_m) * unscale), 0
        result.hessian.pulled = False
        return
    if fabs(factor * mass) < smallest_normal(e) * (R + e_m) * unscale:
        result.after = 1 / unit_size(e)
        factor *= unit_size(e)
    result.hessian = find_hessian(
        e, Denominator[real, double](R * unscale, R_low * unscale, e_m * unscale), R * unscale, e_m * unscale,
        factor * mass, factor * 2 * formula.z_loss)
    result.hessian.pulled = formula.z_loss != 0


cdef inline void finish_result(
    const RowArrays[real]* row, const Formula* formula, const Scale* scale, const FarRow* far, double e_m,
    RowNumbers* numbers, int k, RowResult* result
) noexcept nogil:
    """From the numbers of row k: those that make its result."""
    cdef const real* x = row.x
    cdef double R = numbers.R[k], R_low = numbers.R_low[k]
    if row.result == PRODUCT:
        finish_product(row, formula, scale, far, e_m, numbers, k, result)
    if row.result == SOFTMAX:
        result.probabilities = find_probabilities(x, R, R_low, result.e_m, result.e_m_low)
    elif row.result == LOG_SOFTMAX:
        result.logs = find_log_probabilities(x, numbers.m[k], R, R_low, numbers.m_shifted[k], numbers.n0[k])


cdef void take_row_result(
    const RowArrays[real]* row, const RowResult* result, Py_ssize_t start, Py_ssize_t stop, bint streaming
) noexcept nogil:
    """The last sweep over the classes [start, stop) of a row."""
    cdef const real* x = row.x
    cdef real* e = row.e
    cdef real* g = row.grad
    cdef Py_ssize_t top = row.top
    cdef int step
    if row.result == PRODUCT and result.is_far:
        take_far_product(result.far, row, start, stop)
        return
    if row.result == PRODUCT:
        if result.unscale != 1:
            multiply(e + start, result.unscale, stop - start)
        take_product(
            result.product, x if row.has_probs else <const real*> e, row.vector, row.allowed, g, start, stop, streaming)
        for step in range(result.steps):
            multiply(g + start, SCALE_STEP, stop - start)
        return
    if row.result == LOG_SOFTMAX:
        take_result(result.logs, x, row.allowed, -INFINITY, g, start, stop, streaming)
        return
    take_result(result.probabilities, <const real*> e, row.allowed, 0, g, start, stop, streaming)
    if start <= top < stop and result.probabilities.at_top == result.probabilities.at_top:
        g[top] = <real> result.probabilities.at_top


cdef void take_far_log_probabilities(
    const Job* job, const RowArrays[real]* row, const char* source, const RowNumbers* numbers, int k, real* g
) noexcept nogil:
    """The logarithms of the probabilities of row k, whose logits at `source` the temperature takes out of range."""
    cdef const real* x = row.x
    cdef double T = job.transform.temperature, m, log
    cdef Py_ssize_t c
    log = log1p_rest(x, numbers.R[k], numbers.R_low[k], numbers.m_shifted[k], numbers.n0[k])
    read_row(g, source, &job.logits, row.n)
    for c in range(row.n if row.allowed != NULL else 0):
        if row.allowed[c] == 0:
            g[c] = -INFINITY
    m = row_max(<const real*> g, row.n) / 2
    for c in range(row.n):
        # Halves, since the difference of two logits may be too large.
        if row.allowed == NULL or row.allowed[c] != 0:
            g[c] = <real> ((<double> g[c] / 2 - m) / T * 2 - log)


cdef void set_lse(const RowArrays[real]* row, RowNumbers* numbers, int k) noexcept nogil:
    """Make the loss of row k of `numbers` its log-sum-exp, which is m if m is infinite and no logit is NaN."""
    if fabs(numbers.m[k]) == INFINITY and not is_finite(numbers.R[k]) and not has_nan(row.x, 1, row.n):
        numbers.R[k] = numbers.R_low[k] = numbers.m_shifted[k] = numbers.n0[k] = 0
    numbers.mass[k] = 1
    numbers.cross[k] = numbers.m[k]


cdef void end_hessian(const RowArrays[real]* row, const RowResult* result) noexcept nogil:
    """Set the class with more than half of the probability, and scale the whole row."""
    cdef real* h = row.hess
    cdef int step
    if result.is_far:
        end_far_hessian(result.far, row, result.top)
        return
    if result.hessian.at_top == result.hessian.at_top:
        h[result.top] = <real> result.hessian.at_top
    for step in range(result.steps):
        multiply(h, SCALE_STEP, row.n)
    if result.after != 1:
        multiply(h, result.after, row.n)


cdef const real* place_vector(const Job* job, Py_ssize_t i, real* scratch) noexcept nogil:
    """The vector of row i, which is read into `scratch` if it cannot be used in place."""
    if job.vectors.direct:
        return <const real*> row_address(&job.vectors, i)
    read_row(scratch, row_address(&job.vectors, i), &job.vectors, job.n_classes)
    return scratch


cdef void mask_target(real* t, const unsigned char* allowed, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(n):
        if allowed[c] == 0:
            t[c] = 0


cdef void place_tops(LaneGroup[real]* group, const real* x, Py_ssize_t n, int64_t* classes) noexcept nogil:
    """classes[lane] becomes the class with the largest logit."""
    cdef Lanes[real] m = load_lanes(group.m), top = Lanes[real](0)
    cdef real[MAX_LANES] tops
    cdef Py_ssize_t c, lane
    for c in range(n - 1, -1, -1):
        top = select_equal(load_lanes(x + c * lanes_of(x)), m, class_in_lanes(x, c), top)
    store(tops, top)
    for lane in range(lanes_of(x)):
        classes[lane] = <int64_t> tops[lane]


cdef void find_no_targets(
    const Job* job, LaneGroup[real]* group, const real* x, LaneNumbers* numbers
) noexcept nogil:
    """The class with the largest logit of each lane stands for its label."""
    cdef Py_ssize_t lane
    find_tops(group, x, job.n_classes, job.result == LOGSUMEXP, numbers[0])
    for lane in range(lanes_of(x) if job.result == PRODUCT or job.diagnostics.argmax != NULL else 0):
        group.label[lane] = group.top[lane] = <int64_t> group.label_class[lane]


cdef inline bint goes_to_rows(const Job* job, const Layout* to, Py_ssize_t n, const real* tag) noexcept nogil:
    """Whether results can be transposed into rows as they are made: nothing is done to them afterwards."""
    return (
        to.direct and n >= in_quarter(tag)
        and not (job.has_sample_weight or job.has_ignored or job.has_slope or job.has_allowed))


cdef bint take_lane_hessians(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, Tiles[real]* tiles, const real* e,
    LaneNumbers* numbers
) noexcept nogil:
    """The Hessians of `count` rows from i on, as finish_hessian and end_hessian; False as in visit_lanes."""
    cdef Hessian[Lanes[real]] hessian
    cdef double[MAX_LANES] scales, pulls, R, R_low
    cdef char* at_rows[MAX_LANES]
    cdef Lanes[real] here, own
    cdef Py_ssize_t n = job.n_classes, c, at
    cdef real* h = tiles.hess
    if not find_scales(job, &job.hess_scale, numbers.weight, scales, e):
        return False
    find_rests(group[0], e, n, numbers[0], R, R_low)
    if job.formula.z_loss != 0:
        find_pulls(e, job.formula, numbers[0], pulls)
    if not find_hessians_of_lanes(
        group[0], job.formula, R, R_low, pulls, scales, numbers[0], &hessian, &own
    ):
        return False
    if goes_to_rows(job, &job.hess, n, e):
        place_results(&job.hess, i, count, n, tiles.staging, False, at_rows)
        write_hessians(hessian, own, e, n, <real**> at_rows)
        return True
    for c in range(n):
        at = c * lanes_of(e)
        here = load_lanes(e + at)
        store(h + at, select_equal(here, own, hessian.at_top, hessian.of(here)))
    if tiles.slope != NULL:
        multiply_by_slope(h, tiles.slope, n * lanes_of(h))
    if job.has_sample_weight or job.has_ignored:
        zero_lanes(h, numbers.weight, n)
    write_tile(&job.hess, i, count, n, h, tiles.staging, False)
    return True


cdef bint find_products_of_lanes(
    const Job* job, LaneGroup[real]* group, real* at_top, const double* products, double* scales,
    LaneNumbers* numbers, Product[Lanes[real]]* product
) noexcept nogil:
    """The numbers of the products of all lanes, from their sums with the vectors; False if some are out of range.

    `at_top` has the vectors' values at the classes with the largest logits.
    """
    cdef const real* tag = group.m
    cdef Product[Vec[double]] some
    cdef Denominator[real, Vec[double]] whole
    cdef real[MAX_LANES] shift, factor, pull
    cdef double[MAX_LANES] pulls, of_pull, shifts
    cdef Vec[double] mass, scale
    cdef Py_ssize_t lane = 0
    if not are_finite(products, lanes_of(tag)):
        return False
    if job.formula.z_loss != 0:
        find_pulls(tag, job.formula, numbers[0], pulls)
    while lane < lanes_of(tag):
        mass = load(numbers.mass + lane)
        scale = load(scales + lane)
        if job.formula.z_loss != 0:
            mass = mass + load(&pulls[lane])
        whole = Denominator[real, Vec[double]](
            load(numbers.R + lane), load(numbers.R_low + lane), load_as_double(group.e_m + lane))
        some = find_product(
            tag, whole, load(products + lane), load_as_double(at_top + lane), scale * mass,
            scale * Vec[double](2 * job.formula.z_loss))
        store(&pulls[lane], scale * Vec[double](2 * job.formula.z_loss))
        store(&shifts[lane], some.shift)
        store(&of_pull[lane], some.pull)
        store_rounded(&shift[lane], some.shift)
        store_rounded(&factor[lane], some.factor)
        store_rounded(&pull[lane], some.pull)
        store(scales + lane, scale * mass)
        lane += ROWS_AT_ONCE
    for lane in range(lanes_of(tag)):
        if fabs(scales[lane]) > largest_scale(tag) or fabs(scales[lane]) < smallest_scale(tag):
            return False
    if largest_size(shifts, lanes_of(tag)) > largest_shift(tag):
        return False
    if max(largest_size(pulls, lanes_of(tag)), largest_size(of_pull, lanes_of(tag))) > largest_scale(tag):
        return False
    product.at_top, product.shift = load_lanes(at_top), load_lanes(&shift[0])
    product.factor, product.pull = load_lanes(&factor[0]), load_lanes(&pull[0])
    product.pulled = job.formula.z_loss != 0
    return True


cdef bint take_lane_products(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, Tiles[real]* tiles, real* e,
    LaneNumbers* numbers
) noexcept nogil:
    """As take_lane_results, for products. The classes with the largest logits are in group.top."""
    cdef Product[Lanes[real]] product
    cdef real[MAX_LANES] at_top
    cdef double[MAX_LANES] products, scales
    cdef char* at_rows[MAX_LANES]
    cdef bint staged
    cdef Py_ssize_t n = job.n_classes, size = n * lanes_of(e), lane, c, at
    if not find_scales(job, &job.scale, numbers.weight, scales, <const real*> e):
        return False
    for lane in range(lanes_of(e)):
        at_top[lane] = tiles.vectors[group.top[lane] * lanes_of(e) + lane]
    lane_product_sums(<const real*> e, tiles.vectors, n, at_top, products)
    if job.has_probs:
        memset(numbers.R, 0, lanes_of(e) * sizeof(double))
        memset(numbers.R_low, 0, lanes_of(e) * sizeof(double))
        store(group.e_m, Lanes[real](1))
    if not find_products_of_lanes(job, group, at_top, products, scales, numbers, &product):
        return False
    if goes_to_rows(job, &job.grad, n, e):
        staged = place_results(&job.grad, i, count, n, tiles.staging, job.streaming, at_rows)
        write_products(product, <const real*> e, tiles.vectors, n, <real**> at_rows)
        stream_results(&job.grad, i, count, n, <const real*> tiles.staging, staged)
        return True
    for c in range(n):
        at = c * lanes_of(e)
        store(e + at, product.of(load_lanes(e + at), load_lanes(tiles.vectors + at)))
    if tiles.slope != NULL:
        multiply_by_slope(e, tiles.slope, size)
    if job.has_sample_weight or job.has_ignored:
        zero_lanes(e, numbers.weight, n)
    write_tile(&job.grad, i, count, n, e, tiles.staging, job.streaming)
    return True


cdef bint take_lane_results(
    const Job* job, Py_ssize_t i, Py_ssize_t count, LaneGroup[real]* group, Tiles[real]* tiles, real* x,
    LaneNumbers* numbers
) noexcept nogil:
    """As take_row_result, for `count` rows from i on, whose exponentials are in x; False as in visit_lanes."""
    cdef Probabilities[Lanes[real]] probabilities
    cdef LogProbabilities[Lanes[real]] logs
    cdef Py_ssize_t n = job.n_classes, c, at
    cdef char* at_rows[MAX_LANES]
    cdef bint to_rows = goes_to_rows(job, &job.grad, n, x), staged = False
    cdef Lanes[real] zero = Lanes[real](0), instead = Lanes[real](not_allowed(job.result)), made, top
    if job.result == LOGSUMEXP:
        memcpy(numbers.cross, numbers.m, lanes_of(x) * sizeof(double))
        return are_finite(numbers.m, lanes_of(x))
    if job.result == PRODUCT:
        return take_lane_products(job, i, count, group, tiles, x, numbers)
    if to_rows:
        staged = place_results(&job.grad, i, count, n, tiles.staging, job.streaming, at_rows)
    if job.result == SOFTMAX:
        find_probabilities_of_lanes(<const real*> x, numbers[0], &probabilities)
        top = select_equal(
            probabilities.at_top, probabilities.at_top, load_lanes(group.label_class), Lanes[real](-1))
        if to_rows:
            write_probabilities(probabilities, top, <const real*> x, n, <real**> at_rows)
            stream_results(&job.grad, i, count, n, <const real*> tiles.staging, staged)
            return True
        for c in range(n):
            at = c * lanes_of(x)
            store(x + at, select_equal(
                class_in_lanes(x, c), top, probabilities.at_top, probabilities.of(load_lanes(x + at))))
    else:
        find_log_probabilities_of_lanes(<const real*> x, numbers[0], &logs)
        if to_rows:
            write_log_probabilities(logs, <const real*> tiles.kept_logits, n, <real**> at_rows)
            stream_results(&job.grad, i, count, n, <const real*> tiles.staging, staged)
            return True
        for c in range(n):
            at = c * lanes_of(x)
            store(x + at, logs.of(load_lanes(tiles.kept_logits + at)))
    if job.has_allowed:
        for c in range(n):
            at = c * lanes_of(x)
            made = load_lanes(x + at)
            store(x + at, select_equal(load_lanes(tiles.slope + at), zero, instead, made))
    write_tile(&job.grad, i, count, n, x, tiles.staging, job.streaming)
    return True
