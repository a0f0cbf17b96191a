# The middle kernel: a group of rows at once, too long to be transposed, and too short to be visited one by one.
#
# A sweep goes over one row of the group after the other, with lanes across the classes, as in the wide kernel. Between
# the sweeps each row is in a lane, as in the narrow kernel, and the numbers of all rows are found together. So no sweep
# waits for the numbers of its row. The operations and their order are those of the other two, and so are the bits.
#
# A group is as large as stays near the core. Which calls come here: rows_of_group in call/plan.pxi. If a number of one
# row leaves its range, the wide kernel takes the whole group. Groups of most calls overlap: see row/pipeline.hpp.
#
# What most calls do to a row is inline here, and what an option adds is a function of its own, for a whole group: so
# the sweeps of a call without options keep their numbers in registers.


cdef inline bint makes_logits(const Job* job) noexcept nogil:
    return job.transforms or not job.logits.direct


cdef inline void place_group(
    const Job* job, Py_ssize_t i, Py_ssize_t count, real* staging, GroupRows[real]* rows
) noexcept nogil:
    """Where `count` rows from i on are. What is not made where results go is made in `staging`, slopes behind that."""
    rows.count, rows.n, rows.bytes_to_next = count, job.n_classes, count * job.logits.step
    rows.prefetching = job.prefetching and i + 2 * count <= job.n_rows
    place_lanes(&job.logits, i, count, count, <char**> rows.given, NULL)
    if job.has_grad:
        place_lanes(&job.grad, i, count, count, rows.stored, NULL)
    if is_made_in_place(job):
        rows.made = <real**> rows.stored
    else:
        place_staged(staging, rows.n, count, <char**> rows.staged)
        rows.made = rows.staged
    rows.x = <const real**> rows.made if makes_logits(job) else <const real**> rows.given
    if job.has_allowed:
        place_lanes(&job.allowed, i, count, count, <char**> rows.allowed, NULL)
    if job.has_slope:
        place_staged(staging + GROUP_BYTES // <Py_ssize_t> sizeof(real), rows.n, count, <char**> rows.slope)
    if job.result == PRODUCT:
        place_lanes(&job.vectors, i, count, count, <char**> rows.vectors, NULL)
    if job.result == HESSIAN:
        place_lanes(&job.hess, i, count, count, <char**> rows.hess, NULL)


cdef bint make_logits_of_rows(
    const Job* job, const GroupRows[real]* rows, Py_ssize_t start, LaneGroup[real]* group
) noexcept nogil:
    """The logits of the softmax, where they are not those given, and the largest, for the rows from `start` on.

    False if one is not finite.
    """
    cdef real* slope = NULL
    cdef Py_ssize_t lane
    cdef bint all_finite = True
    cdef Converted given
    cdef Taken taken
    for lane in range(start, rows.count):
        given.layout, given.data = &job.logits, <char*> rows.given[lane]
        if job.has_slope:
            slope = rows.slope[lane]
        taken = take_logits(job.transform, given, allowed_of(job[0], rows[0], lane), rows.made[lane], slope, 0, rows.n)
        group.m[lane] = <real> taken.m
        all_finite &= taken.all_finite
    return all_finite


cdef inline bint find_logits_of_rows(
    const Job* job, Py_ssize_t i, const GroupRows[real]* rows, const Pipeline[real]* line, LaneGroup[real]* group
) noexcept nogil:
    """Logits and maximum of each row. False if the temperature may have made a finite logit infinite."""
    cdef Py_ssize_t lane, known = min(line.n_next, rows.count) if line.next == i else 0
    cdef bint all_finite = line.all_finite or known == 0
    memcpy(group.m, line.m, known * sizeof(real))
    if makes_logits(job):
        all_finite &= make_logits_of_rows(job, rows, known, group)
        return all_finite or not job.may_leave_range
    for lane in range(known, rows.count):
        group.m[lane] = <real> row_max(rows.x[lane], rows.n)
    return True


cdef inline void find_classes_of_rows(
    const Job* job, const GroupRows[real]* rows, LaneGroup[real]* group, LaneNumbers* numbers
) noexcept nogil:
    """The label of each row, or its top class; lanes without a row get what the first has."""
    cdef const real* x
    cdef Py_ssize_t lane
    cdef bint labelled = job.kind == LABELS
    for lane in range(rows.count):
        x = rows.x[lane]
        if labelled:
            group.label_logit[lane] = x[group.label[lane]]
        elif job.result == LOGSUMEXP and fabs(group.m[lane]) >= PLAIN_LSE_FROM:
            group.label[lane] = -1
        else:
            group.label[lane] = find_top(x, rows.n, group.m[lane])
    for lane in range(rows.count, lanes_of(x)):
        group.m[lane], group.label[lane], group.label_logit[lane] = group.m[0], group.label[0], group.label_logit[0]
    set_m(group, load_lanes(group.m), numbers[0])
    find_label_classes(group)
    if labelled:
        find_labels(group, <const real*> job.class_weight, numbers[0])
    else:
        set_tops(group, numbers[0])
        memcpy(group.argmax, group.label_class, lanes_of(x) * sizeof(real))


cdef inline bint has_results_of_lanes(const Job* job) noexcept nogil:
    """Whether the last sweep over a row needs no more than its lane: see with_results."""
    return job.result == SOFTMAX or job.result == LOG_SOFTMAX or (
        job.result == GRADIENT and not (takes_targets(job) or converts_rows(job) or job.has_slope))


cdef inline bint takes_targets(const Job* job) noexcept nogil:
    """Whether targets are visited row by row, and not as labels in lanes."""
    return job.kind == SPARSE or job.kind == DISTRIBUTIONS or job.formula.weighs


cdef void find_targets_of_rows(
    const Job* job, Py_ssize_t i, const real* one, GroupRows[real]* rows, LaneGroup[real]* group, double* gaps,
    double* w_a, LaneNumbers* numbers
) noexcept nogil:
    """The sums of each row's target; `gaps` and w_a only where classes have weights and the label is smoothed."""
    cdef const real* x
    cdef const real* weight = <const real*> job.class_weight
    cdef RowSums sums
    cdef Target[real]* target
    cdef double low
    cdef Py_ssize_t lane, distance = 0
    if rows.prefetching and job.kind == DISTRIBUTIONS:
        distance = job.targets.step * rows.count // <Py_ssize_t> sizeof(real)
    for lane in range(rows.count):
        x = rows.x[lane]
        target = &rows.target[lane]
        read_target(job, i + lane, group.label + lane, one, target)
        sums.clear()
        if job.kind == DISTRIBUTIONS:
            target.distribution = <const real*> row_address(&job.targets, i + lane)
            find_distribution(
                &sums, x, target.distribution, rows.n, group.m[lane], job.has_allowed, distance)
        else:
            find_sparse(&sums, x, 1, target, 0, rows.n, group.m[lane])
        if job.formula.weighs:
            find_weighted_gaps(&sums, x, weight, rows.n, group.m[lane])
            gaps[lane] = sums.gaps.minus(0, &low)
            w_a[lane] = weight[sums.argmax] if sums.argmax >= 0 else 0
        group.argmax[lane] = sums.argmax
        group.rest[lane] = sums.rest.minus(0, &low)
        numbers.cross[lane] = sums.cross.minus(0, &low)
        numbers.mass[lane] = group.rest[lane] + sums.t_at_argmax
    for lane in range(rows.count, lanes_of(x)):
        group.argmax[lane], group.rest[lane] = group.argmax[0], group.rest[0]
        numbers.cross[lane], numbers.mass[lane] = numbers.cross[0], numbers.mass[0]
        if job.formula.weighs:
            gaps[lane], w_a[lane] = gaps[0], w_a[0]


cdef void open_pipeline(const Job* job, Py_ssize_t stop, real* scratch, Pipeline[real]* line) noexcept nogil:
    """For a thread whose rows end at `stop`."""
    line.stop = min(stop, job.n_rows)
    line.has_results = has_results_of_lanes(job) and job.grad.direct
    line.may_wait = line.has_results and job.in_line and not job.streaming
    if job.scratch_rows > 0:
        line.staging, line.next_staging = scratch, scratch + job.group_rows * job.n_classes


cdef void close_pipeline(const Job* job, Pipeline[real]* line) noexcept nogil:
    """The last sweep over a group that waits, if there is one."""
    cdef RowGroup[real]* before = &line.groups[not line.turn]
    if line.waits:
        take_results_of_lanes(job[0], before[0], 0, before.rows.count)


cdef void take_exponentials_and_products_of_rows(
    const GroupRows[real]* rows, const LaneGroup[real]* group, real* at_top, double* products, LaneNumbers* numbers
) noexcept nogil:
    """As take_exponentials_of_rows, and the sums with the vectors.

    `at_top` gets their values at the classes with the largest logits. Lanes without a row get what the first has.
    """
    cdef Carried[double] product
    cdef double low
    cdef Py_ssize_t lane
    for lane in range(rows.count):
        at_top[lane] = rows.vectors[lane][group.top[lane]]
        set_sum_of_row(numbers[0], lane, exp_and_product_sums(
            rows.x[lane], rows.made[lane], rows.vectors[lane], rows.n, <Py_ssize_t> group.argmax[lane],
            unit_of(group[0], lane), at_top[lane], to_next_group(rows[0], lane), &product))
        products[lane] = product.minus(0, &low)
    for lane in range(rows.count, MAX_LANES):
        products[lane], at_top[lane] = products[0], at_top[0]


cdef void take_exponentials_and_diagnostics_of_rows(
    const GroupRows[real]* rows, const LaneGroup[real]* group, LaneNumbers* numbers
) noexcept nogil:
    """The sums of exponentials, which are not stored, and the diagnostics of each row."""
    cdef DiagnosticSums diagnostics
    cdef Py_ssize_t lane
    for lane in range(rows.count):
        set_sum_of_row(numbers[0], lane, exp_and_diagnostic_sums(
            rows.x[lane], rows.n, <Py_ssize_t> group.argmax[lane], unit_of(group[0], lane), group.m[lane],
            group.label[lane], group.label_logit[lane], &diagnostics, to_next_group(rows[0], lane)))
        end_diagnostics(
            &diagnostics, rows.x[lane], rows.n, group.label[lane], group.m[lane], group.e_m[lane], NULL,
            numbers.diagnostics, numbers.k + lane, numbers.m + lane)


cdef inline bint find_scales_of_rows(
    const Job* job, const Scale* scale, Py_ssize_t count, const LaneNumbers* numbers, double* scales, const real* tag
) noexcept nogil:
    """As find_scales; lanes without a row get the scale of the first."""
    cdef double[MAX_LANES] weight
    cdef Py_ssize_t lane
    for lane in range(lanes_of(tag)):
        weight[lane] = numbers.weight[lane if lane < count else 0]
    return find_scales(job, scale, weight, scales, tag)


cdef inline bint find_group_scales(
    const Job* job, Py_ssize_t count, const LaneNumbers* numbers, double* scales, const real* tag
) noexcept nogil:
    """The scales of the gradients. False if finish_lanes would refuse scale * mass, unless an option changes that."""
    cdef double size
    cdef Py_ssize_t lane
    if not find_scales_of_rows(job, &job.scale, count, numbers, scales, tag):
        return False
    for lane in range(lanes_of(tag)):
        size = fabs(scales[lane] * numbers.mass[lane])
        if size != 0 and not smallest_scale(tag) <= size <= largest_scale(tag):
            return False
    return True


cdef inline bint converts_rows(const Job* job) noexcept nogil:
    """Whether gradients are converted as they are stored. Entries of targets are subtracted before that."""
    return job.converts_stores and (job.kind == DISTRIBUTIONS or not takes_targets(job))


cdef inline bint do_all_count(const RowGroup[real]* of, const LaneNumbers* numbers) noexcept nogil:
    """Whether no row has the weight 0."""
    cdef Py_ssize_t lane
    for lane in range(of.rows.count):
        if numbers.weight[lane] == 0:
            return False
    return True


cdef void take_gradient_of_target(
    const Job* job, const GroupRows[real]* rows, const LaneGroup[real]* group, const LaneResults[real]* results,
    Py_ssize_t lane
) noexcept nogil:
    """The last sweep over a row with any target, and the class that is set by itself."""
    cdef real* g = rows.made[lane]
    cdef const unsigned char* allowed = allowed_of(job[0], rows[0], lane)
    cdef const Target[real]* target = &rows.target[lane]
    cdef const real* t = target.distribution if job.kind == DISTRIBUTIONS else NULL
    cdef Gradient[double] gradient = of_lane(group.gradient, lane), swept = gradient
    cdef Py_ssize_t own_class = <Py_ssize_t> lane_of(group.own_class, lane), top = <Py_ssize_t> group.argmax[lane]
    cdef real own = lane_of(group.own_grad, lane), at_top
    cdef Converted to
    if job.formula.weighs:
        t, swept.minus = target.class_weight, gradient.offset
    if own_class >= 0 and not is_allowed(allowed, own_class):
        own_class = -1
    if converts_rows(job):
        to.layout, to.data = &job.grad, rows.stored[lane]
        take_converted_gradient(swept, 1, g, t, allowed, to, 0, rows.n)
        if own_class >= 0:
            write_row(to.data + own_class * job.grad.class_stride, <const real*> &own, &job.grad, 1)
        return
    if job.result == HESSIAN:
        at_top = lane_of(results.hessian.at_top, lane)
        if at_top == at_top and top < 0:
            top = find_top(<const real*> g, rows.n, group.e_m[lane])
        take_gradient_and_hessian(
            swept, of_lane(results.hessian, lane), 1, g, t, allowed, g, rows.hess[lane], 0, rows.n, False)
        if at_top == at_top:
            rows.hess[lane][top] = at_top
    elif t != NULL:
        take_gradient(swept, 1, g, t, allowed, g, 0, rows.n, False)
    else:
        take_result_in(gradient, <const real*> g, allowed, 0, g, rows.n)
    if takes_targets(job):
        subtract_sparse(&gradient, g, 1, rows.n, target, allowed)
    if own_class >= 0:
        g[own_class] = own


cdef inline void take_result_of_row(
    const Job* job, const RowGroup[real]* of, Py_ssize_t lane
) noexcept nogil:
    """The last sweep over a row, and the class that is set by itself."""
    cdef const GroupRows[real]* rows = &of.rows
    cdef real* g = rows.made[lane]
    if has_results_of_lanes(job):
        take_results_of_lanes(job[0], of[0], lane, lane + 1)
    elif job.result == PRODUCT:
        take_product(
            of_lane(of.results.product, lane), <const real*> g, rows.vectors[lane],
            allowed_of(job[0], rows[0], lane), g, 0, rows.n, False)
    else:
        take_gradient_of_target(job, rows, &of.group, &of.results, lane)
    if job.has_slope:
        multiply_by_slope(g, <const real*> rows.slope[lane], rows.n)


cdef void take_result_of_each(
    const Job* job, const RowGroup[real]* of, const LaneNumbers* numbers
) noexcept nogil:
    """The last sweep over each row, whatever its result."""
    cdef const GroupRows[real]* rows = &of.rows
    cdef real* made
    cdef Py_ssize_t lane
    cdef bint counts
    for lane in range(rows.count):
        made = rows.made[lane]
        counts = numbers.weight[lane] != 0
        if counts:
            take_result_of_row(job, of, lane)
        else:
            memset(made, 0, rows.n * sizeof(real))
        if not counts and job.result == HESSIAN:
            memset(rows.hess[lane], 0, rows.n * sizeof(real))
        if not (job.grad.direct or (counts and converts_rows(job))):
            write_row(rows.stored[lane], <const real*> made, &job.grad, rows.n)


cdef bint find_hessians_of_rows(
    const Job* job, const GroupRows[real]* rows, const LaneGroup[real]* group, const double* pulls,
    LaneNumbers* numbers, LaneResults[real]* results
) noexcept nogil:
    """As take_lane_hessians, but for the last sweep."""
    cdef const real* e
    cdef double[MAX_LANES] scales, R, R_low
    cdef Lanes[real] own                    # take_gradient_of_target finds the class itself
    cdef double e_m
    cdef Py_ssize_t lane
    if not find_scales_of_rows(job, &job.hess_scale, rows.count, numbers, scales, group.m):
        return False
    memcpy(R, numbers.R, sizeof(R))
    memcpy(R_low, numbers.R_low, sizeof(R))
    for lane in range(rows.count):
        e, e_m = rows.made[lane], group.e_m[lane]
        if group.argmax[lane] < 0 and has_lost_digits(e, R[lane], e_m, rows.n):
            R[lane] = rest_of(e, rows.n, find_top(e, rows.n, e_m)).minus(0, &R_low[lane])
    return find_hessians_of_lanes(
        group[0], job.formula, R, R_low, pulls, scales, numbers[0], &results.hessian, &own)


cdef inline bint take_results_of_rows(
    const Job* job, RowGroup[real]* of, double* scales, const double* share, const double* gaps, real* at_top,
    LaneNumbers* numbers, Pipeline[real]* line
) noexcept nogil:
    """The results of all rows, whose exponentials were stored; False if a number is out of range."""
    cdef LaneGroup[real]* group = &of.group
    cdef LaneResults[real]* results = &of.results
    cdef const real* tag = group.m
    cdef double[MAX_LANES] pull
    cdef bint scales_suffice
    if job.result == SOFTMAX:
        find_probabilities_of_lanes(tag, numbers[0], &results.probabilities)
    elif job.result == LOG_SOFTMAX:
        find_log_probabilities_of_lanes(tag, numbers[0], &results.logs)
    elif job.result == PRODUCT:
        if not find_products_of_lanes(job, group, at_top, gaps, scales, numbers, &results.product):
            return False
    else:
        if job.formula.z_loss != 0:
            find_pulls(tag, job.formula, numbers[0], pull)
        scales_suffice = job.formula.z_loss == 0 and not job.formula.weighs
        if not finish_lanes(group, job.formula, share, pull, scales, scales_suffice, numbers[0]):
            return False
        if job.result == HESSIAN and not find_hessians_of_rows(job, &of.rows, group, pull, numbers, results):
            return False
        if not takes_targets(job):
            find_grad_at_label(group)
    if not (line.has_results and do_all_count(of, numbers)):
        take_result_of_each(job, of, numbers)
    elif line.may_wait and not (job.has_allowed and need_masks(job[0], of[0])):
        line.waits, line.turn = True, not line.turn
    else:
        take_results_of_lanes(job[0], of[0], 0, of.rows.count)
    return True


cdef bint visit_middle(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, const real* tag, Pipeline[real]* line,
    LaneNumbers* numbers
) noexcept nogil:
    """As visit_lanes. But where it returns False, exponentials may have been stored, and logits of the next group, too.

    The logits given are what they were.
    """
    cdef Tile[real] tile
    cdef real* staging = tile.space
    cdef RowGroup[real]* of = &line.groups[line.turn]
    cdef GroupRows[real]* rows = &of.rows
    cdef LaneGroup[real]* group = &of.group
    cdef int64_t* labels = of.label
    cdef double[MAX_LANES] scales, gaps, share, w_a
    cdef real one = 1
    cdef real[MAX_LANES] at_top
    cdef bint stores = job.has_grad and job.result != LOG_SOFTMAX
    cdef double* gap_sums = NULL
    cdef bint has_scales = job.has_grad and job.result in (GRADIENT, HESSIAN, PRODUCT)
    cdef Py_ssize_t lane
    group.label = labels
    if job.formula.smoothing != 0 and not job.formula.weighs:
        gap_sums = gaps
    if job.kind == LABELS:
        memcpy(labels, label, count * sizeof(int64_t))
    if job.scratch_rows > 0:
        staging = line.next_staging
        line.staging, line.next_staging = staging, line.staging
    else:
        line.next_staging = staging         # only rows that do not exist go there
    place_group(job, i, count, staging, rows)
    if not find_logits_of_rows(job, i, rows, line, group):
        return False
    if takes_targets(job):
        for lane in range(count, lanes_of(tag)):
            group.m[lane] = group.m[0]
        set_m(group, load_lanes(group.m), numbers[0])
        find_targets_of_rows(job, i, &one, rows, group, gaps, w_a, numbers)
    else:
        find_classes_of_rows(job, rows, group, numbers)
    # What only the wide kernel takes is found before exponentials are stored, since they may overwrite the logits. With
    # some options it is found later: see can_be_grouped, by which they overwrite no logits then.
    if real is double and not are_finite(numbers.cross, lanes_of(tag)):
        return False
    if job.result == LOGSUMEXP and not are_finite(numbers.m, lanes_of(tag)):
        return False
    if has_scales and not find_group_scales(job, count, numbers, scales, tag):
        return False
    if job.diagnostics.argmax != NULL:
        take_exponentials_and_diagnostics_of_rows(rows, group, numbers)
    elif job.result == PRODUCT:
        for lane in range(count):
            group.top[lane] = find_top(<const real*> rows.x[lane], rows.n, group.m[lane])
        take_exponentials_and_products_of_rows(rows, group, at_top, gaps, numbers)
    elif job.in_line:
        line.next = i + count
        line.n_next = min(count, line.stop - line.next)
        take_exponentials_in_line(job[0], of[0], stores, line, numbers[0], gap_sums)
    else:
        take_exponentials_of_rows(of[0], stores, numbers[0], gap_sums)
    for lane in range(count, lanes_of(tag)):
        numbers.R[lane], numbers.R_low[lane] = numbers.R[0], numbers.R_low[0]
        if gap_sums != NULL:
            gaps[lane] = gaps[0]
    take_off(group[0], numbers[0])
    if job.formula.smoothing != 0 and job.result != PRODUCT:
        smooth_lanes(group, &job.formula, rows.n, gaps, w_a, share, numbers)
        if not are_finite(numbers.cross, lanes_of(tag)):
            return False
    if job.kind == NO_TARGET:
        memcpy(label, labels, count * sizeof(int64_t))
    if job.result == LOGSUMEXP:
        memcpy(numbers.cross, numbers.m, lanes_of(tag) * sizeof(double))
    if not job.has_grad:
        return True
    if not take_results_of_rows(job, of, scales, share, gaps, at_top, numbers, line):
        return False
    stream_results(&job.grad, i, count, rows.n, <const real*> staging, job.streaming)
    return True
