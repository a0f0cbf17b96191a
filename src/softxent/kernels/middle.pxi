# The middle kernel: a group of rows at once, too long to be transposed, and too short to be visited one by one.
#
# A sweep goes over one row of the group after the other, with lanes across the classes, as in the wide kernel. Between
# the sweeps each row is in a lane, as in the narrow kernel, and the numbers of all rows are found together. So no sweep
# waits for the numbers of its row. The operations and their order are those of the other two, and so are the bits.
#
# A group is as large as stays near the core. Which calls come here: rows_of_group in call/plan.pxi. If a number of one
# row leaves its range, the wide kernel takes the whole group.


cdef inline bint makes_logits(const Job* job) noexcept nogil:
    return job.transforms or not job.logits.direct


cdef inline void place_group(
    const Job* job, Py_ssize_t i, Py_ssize_t count, real* staging, GroupRows[real]* rows
) noexcept nogil:
    """Where `count` rows from i on are. What is not made where results go is made in `staging`, and so are slopes."""
    rows.count, rows.n, rows.to_next_group = count, job.n_classes, 0
    place_lanes(&job.logits, i, count, count, <char**> rows.given, NULL)
    if job.has_grad:
        place_lanes(&job.grad, i, count, count, rows.stored, NULL)
    if job.has_grad and job.grad.direct and not job.streaming:
        rows.made = <real**> rows.stored
    else:
        place_staged(staging, rows.n, count, <char**> rows.staged)
        rows.made = rows.staged
    rows.x = <const real**> rows.made if makes_logits(job) else <const real**> rows.given
    if job.has_allowed:
        place_lanes(&job.allowed, i, count, count, <char**> rows.allowed, NULL)
    if job.has_slope:
        place_staged(staging + GROUP_BYTES // <Py_ssize_t> sizeof(real), rows.n, count, <char**> rows.slope)
    if job.prefetching and i + 2 * count <= job.n_rows:
        rows.to_next_group = count * job.logits.step


cdef inline const unsigned char* allowed_of(
    const Job* job, const GroupRows[real]* rows, Py_ssize_t lane
) noexcept nogil:
    return rows.allowed[lane] if job.has_allowed else NULL


cdef inline bint find_logits_of_rows(const Job* job, GroupRows[real]* rows, LaneGroup[real]* group) noexcept nogil:
    """Logits and maximum of each row. False if the temperature may have made a finite logit infinite."""
    cdef real* slope = NULL
    cdef Py_ssize_t lane
    cdef bint all_finite = True
    cdef Converted given
    cdef Taken taken
    if not makes_logits(job):
        for lane in range(rows.count):
            group.m[lane] = <real> row_max(rows.x[lane], rows.n)
        return True
    for lane in range(rows.count):
        given.layout, given.data = &job.logits, <char*> rows.given[lane]
        if job.has_slope:
            slope = rows.slope[lane]
        taken = take_logits(job.transform, given, allowed_of(job, rows, lane), rows.made[lane], slope, 0, rows.n)
        group.m[lane] = <real> taken.m
        all_finite &= taken.all_finite
    return all_finite or not job.may_leave_range


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


cdef inline bint takes_targets(const Job* job) noexcept nogil:
    """Whether targets are visited row by row, and not as labels in lanes."""
    return job.kind == SPARSE or job.kind == DISTRIBUTIONS or job.formula.weighs


cdef inline void find_targets_of_rows(
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
    if rows.to_next_group != 0:
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
        gaps[lane], w_a[lane] = gaps[0], w_a[0]


cdef inline void take_exponentials_of_rows(
    const Job* job, const GroupRows[real]* rows, LaneGroup[real]* group, double* gaps, DiagnosticSums* diagnostics,
    LaneNumbers* numbers
) noexcept nogil:
    """The exponentials of each row, which are stored if a result is made of them, and R.

    With smoothing, `gaps` gets the sums of m - x, unless classes have weights. With diagnostics, their sums go to
    `diagnostics`.
    """
    cdef const real* x
    cdef real* e = NULL
    cdef Carried[double] R, gap
    cdef double low
    cdef Py_ssize_t lane, argmax, distance = 0
    cdef bint stores = job.has_grad and job.result != LOG_SOFTMAX, has_gaps
    has_gaps = job.formula.smoothing != 0 and not job.formula.weighs
    for lane in range(rows.count):
        x = rows.x[lane]
        argmax = <Py_ssize_t> group.argmax[lane]
        if stores:
            e = rows.made[lane]
        if rows.to_next_group != 0:
            distance = (rows.given[lane] + rows.to_next_group - <const char*> x) // <Py_ssize_t> sizeof(real)
        if job.diagnostics.argmax != NULL:
            R = exp_and_diagnostic_sums(
                x, rows.n, argmax, unit_of(group[0], lane), group.m[lane], group.label[lane], group.label_logit[lane],
                diagnostics + lane, distance)
        elif has_gaps:
            R = exp_and_gap_sum(x, e, rows.n, argmax, unit_of(group[0], lane), group.m[lane], &gap, distance)
            gaps[lane] = gap.minus(0, &low)
        else:
            R = exp_sum(x, e, rows.n, argmax, unit_of(group[0], lane), distance)
        numbers.R[lane], numbers.R_low[lane] = R.sum, R.lost
    for lane in range(rows.count, lanes_of(x)):
        numbers.R[lane], numbers.R_low[lane] = numbers.R[0], numbers.R_low[0]
        if has_gaps:
            gaps[lane] = gaps[0]
    take_off(group[0], numbers[0])


cdef inline bint find_group_scales(
    const Job* job, Py_ssize_t count, const LaneNumbers* numbers, double* scales, const real* tag
) noexcept nogil:
    """As find_scales. False also if finish_lanes would refuse scale * mass, unless an option changes the mass."""
    cdef double[MAX_LANES] weight
    cdef double size
    cdef Py_ssize_t lane
    for lane in range(lanes_of(tag)):
        weight[lane] = numbers.weight[lane if lane < count else 0]
    if not find_scales(job, weight, scales, tag):
        return False
    for lane in range(lanes_of(tag)):
        size = fabs(scales[lane] * numbers.mass[lane])
        if size != 0 and not smallest_scale(tag) <= size <= largest_scale(tag):
            return False
    return True


cdef inline bint converts_rows(const Job* job) noexcept nogil:
    """Whether gradients are converted as they are stored. Entries of targets are subtracted before that."""
    return job.converts_stores and (job.kind == DISTRIBUTIONS or not takes_targets(job))


cdef inline void take_gradient_of_label(
    const Job* job, const GroupRows[real]* rows, const LaneGroup[real]* group, Py_ssize_t lane
) noexcept nogil:
    """The last sweep over a row, and its label, which is set by itself."""
    cdef real* g = rows.made[lane]
    cdef int64_t label = group.label[lane]
    take_result_in(of_lane(group.gradient, lane), <const real*> g, allowed_of(job, rows, lane), 0, g, rows.n)
    if is_allowed(allowed_of(job, rows, lane), label):
        g[label] = lane_of(group.own_grad, lane)


cdef void take_gradient_of_target(
    const Job* job, const GroupRows[real]* rows, const LaneGroup[real]* group, Py_ssize_t lane
) noexcept nogil:
    """The same for other targets, and for gradients that are converted as they are stored. The top class may be set."""
    cdef real* g = rows.made[lane]
    cdef const unsigned char* allowed = allowed_of(job, rows, lane)
    cdef const Target[real]* target = &rows.target[lane]
    cdef const real* t = target.distribution if job.kind == DISTRIBUTIONS else NULL
    cdef Gradient[double] gradient = of_lane(group.gradient, lane), swept = gradient
    cdef Py_ssize_t own_class = <Py_ssize_t> lane_of(group.own_class, lane)
    cdef real own = lane_of(group.own_grad, lane)
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
    if t != NULL:
        take_gradient(swept, 1, g, t, allowed, g, 0, rows.n, False)
    else:
        take_result_in(gradient, <const real*> g, allowed, 0, g, rows.n)
    subtract_sparse(&gradient, g, 1, rows.n, target, allowed)
    if own_class >= 0:
        g[own_class] = own


cdef inline void take_result_of_row(
    const Job* job, const GroupRows[real]* rows, const LaneGroup[real]* group,
    const Probabilities[Lanes[real]]* probabilities, const LogProbabilities[Lanes[real]]* logs, Py_ssize_t lane
) noexcept nogil:
    """The last sweep over a row, and the class that is set by itself."""
    cdef real* g = rows.made[lane]
    cdef real own
    if job.result == LOG_SOFTMAX:
        take_result_in(of_lane(logs[0], lane), rows.x[lane], allowed_of(job, rows, lane), -INFINITY, g, rows.n)
    elif job.result == SOFTMAX:
        take_result_in(of_lane(probabilities[0], lane), <const real*> g, allowed_of(job, rows, lane), 0, g, rows.n)
        own = lane_of(probabilities.at_top, lane)
        if own == own:
            g[group.label[lane]] = own
    elif takes_targets(job) or converts_rows(job):
        take_gradient_of_target(job, rows, group, lane)
    else:
        take_gradient_of_label(job, rows, group, lane)
    if job.has_slope:
        multiply_by_slope(g, <const real*> rows.slope[lane], rows.n)


cdef inline bint take_results_of_rows(
    const Job* job, const GroupRows[real]* rows, LaneGroup[real]* group, const double* scales, const double* share,
    LaneNumbers* numbers
) noexcept nogil:
    """The results of all rows, whose exponentials were stored; False if finish_lanes refuses the scales."""
    cdef real* made
    cdef const real* tag = group.m
    cdef Probabilities[Lanes[real]] probabilities
    cdef LogProbabilities[Lanes[real]] logs
    cdef double[MAX_LANES] pull
    cdef bint scales_suffice, counts
    cdef Py_ssize_t lane
    if job.result == SOFTMAX:
        find_probabilities_of_lanes(tag, numbers[0], &probabilities)
    elif job.result == LOG_SOFTMAX:
        find_log_probabilities_of_lanes(tag, numbers[0], &logs)
    else:
        if job.formula.z_loss != 0:
            find_pulls(tag, job.formula, numbers[0], pull)
        scales_suffice = job.formula.z_loss == 0 and not job.formula.weighs
        if not finish_lanes(group, job.formula, share, pull, scales, scales_suffice, numbers[0]):
            return False
        if not takes_targets(job):
            find_grad_at_label(group)
    for lane in range(rows.count):
        made = rows.made[lane]
        counts = numbers.weight[lane] != 0
        if counts:
            take_result_of_row(job, rows, group, &probabilities, &logs, lane)
        else:
            memset(made, 0, rows.n * sizeof(real))
        if not (job.grad.direct or (counts and converts_rows(job))):
            write_row(rows.stored[lane], <const real*> made, &job.grad, rows.n)
    return True


cdef bint visit_middle(
    const Job* job, Py_ssize_t i, Py_ssize_t count, const int64_t* label, const real* tag, LaneNumbers* numbers
) noexcept nogil:
    """As visit_lanes. But where it returns False, exponentials may have been stored. The logits are what they were."""
    cdef Tile[real] staging
    cdef GroupRows[real] rows
    cdef LaneGroup[real] group
    cdef DiagnosticSums[MAX_LANES] diagnostics
    cdef int64_t[MAX_LANES] labels
    cdef double[MAX_LANES] scales, gaps, share, w_a
    cdef real one = 1
    cdef bint has_grad = job.has_grad and job.result == GRADIENT
    cdef Py_ssize_t lane
    group.label = labels
    memcpy(labels, label, count * sizeof(int64_t))
    place_group(job, i, count, staging.space, &rows)
    if not find_logits_of_rows(job, &rows, &group):
        return False
    if takes_targets(job):
        for lane in range(count, lanes_of(tag)):
            group.m[lane] = group.m[0]
        set_m(&group, load_lanes(group.m), numbers[0])
        find_targets_of_rows(job, i, &one, &rows, &group, gaps, w_a, numbers)
    else:
        find_classes_of_rows(job, &rows, &group, numbers)
    # What only the wide kernel takes is found before exponentials are stored, since they may overwrite the logits. With
    # other options it is found later: see rows_of_group, which takes no such call in place.
    if real is double and not are_finite(numbers.cross, lanes_of(tag)):
        return False
    if job.result == LOGSUMEXP and not are_finite(numbers.m, lanes_of(tag)):
        return False
    if has_grad and not find_group_scales(job, count, numbers, scales, tag):
        return False
    take_exponentials_of_rows(job, &rows, &group, gaps, diagnostics, numbers)
    if job.formula.smoothing != 0:
        smooth_lanes(&group, &job.formula, rows.n, gaps, w_a, share, numbers)
        if not are_finite(numbers.cross, lanes_of(tag)):
            return False
    if job.result == LOGSUMEXP:
        memcpy(numbers.cross, numbers.m, lanes_of(tag) * sizeof(double))
    for lane in range(count if job.diagnostics.argmax != NULL else 0):
        end_diagnostics(
            diagnostics + lane, rows.x[lane], rows.n, labels[lane], group.m[lane], group.e_m[lane], NULL,
            numbers.diagnostics, numbers.k + lane, numbers.m + lane)
    if not job.has_grad:
        return True
    if not take_results_of_rows(job, &rows, &group, scales, share, numbers):
        return False
    stream_results(&job.grad, i, count, rows.n, <const real*> staging.space, job.streaming)
    return True
