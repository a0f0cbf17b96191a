# The middle kernel: a group of rows at once, too long to be transposed, and too short to be visited one by one.
#
# A sweep goes over one row of the group after the other, with lanes across the classes, as in the wide kernel. Between
# the sweeps each row is in a lane, as in the narrow kernel, and the numbers of all rows are found together. So no sweep
# waits for the numbers of its row. The operations and their order are those of the other two, and so are the bits.
#
# A group is as large as stays near the core. Which calls come here: rows_of_group in call/plan.pxi. If a number of one
# row leaves its range, the wide kernel takes the whole group.


cdef struct GroupRows:
    # Where the rows of a group are.
    char* x[MAX_LANES]
    char* grad[MAX_LANES]       # where the exponentials are, and then the result
    Py_ssize_t count, n, prefetch_distance


cdef inline void place_group(
    const Job* job, Py_ssize_t i, Py_ssize_t count, real* staging, GroupRows* rows
) noexcept nogil:
    """Where `count` rows from i on are. If results are stored past the caches, they are made in `staging` first."""
    rows.count, rows.n, rows.prefetch_distance = count, job.n_classes, 0
    place_lanes(&job.logits, i, count, count, rows.x, NULL)
    if job.has_grad and job.streaming:
        place_staged(staging, rows.n, count, rows.grad)
    elif job.has_grad:
        place_lanes(&job.grad, i, count, count, rows.grad, NULL)
    if job.prefetching and i + 2 * count <= job.n_rows:
        rows.prefetch_distance = count * job.logits.step // <Py_ssize_t> sizeof(real)


cdef inline void find_classes_of_rows(
    const Job* job, const GroupRows* rows, LaneGroup[real]* group, LaneNumbers* numbers
) noexcept nogil:
    """Maximum and label of each row, or its top class; lanes without a row get those of the first."""
    cdef const real* x
    cdef Py_ssize_t lane
    cdef bint labelled = job.kind == LABELS
    for lane in range(rows.count):
        group.m[lane] = <real> row_max(<const real*> rows.x[lane], rows.n)
    for lane in range(rows.count):
        x = <const real*> rows.x[lane]
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


cdef inline void take_exponentials_of_rows(
    const GroupRows* rows, LaneGroup[real]* group, bint stores, double* gaps, LaneNumbers* numbers
) noexcept nogil:
    """The exponentials of each row, which are stored if `stores`, and R. `gaps` gets the sums of m - x, unless NULL."""
    cdef const real* x
    cdef real* e = NULL
    cdef Carried[double] R, gap
    cdef double low
    cdef Py_ssize_t lane, argmax
    for lane in range(rows.count):
        x = <const real*> rows.x[lane]
        argmax = <Py_ssize_t> group.argmax[lane]
        if stores:
            e = <real*> rows.grad[lane]
        if gaps == NULL:
            R = exp_sum(x, e, rows.n, argmax, unit_of(group[0], lane), rows.prefetch_distance)
        else:
            R = exp_and_gap_sum(
                x, e, rows.n, argmax, unit_of(group[0], lane), group.m[lane], &gap, rows.prefetch_distance)
            gaps[lane] = gap.minus(0, &low)
        numbers.R[lane], numbers.R_low[lane] = R.sum, R.lost
    for lane in range(rows.count, lanes_of(x)):
        numbers.R[lane], numbers.R_low[lane] = numbers.R[0], numbers.R_low[0]
        if gaps != NULL:
            gaps[lane] = gaps[0]
    take_off(group[0], numbers[0])


cdef inline bint find_group_scales(
    const Job* job, Py_ssize_t count, const LaneNumbers* numbers, double* scales, const real* tag
) noexcept nogil:
    """As find_scales. False also if finish_lanes would refuse scale * mass, as long as no z-loss is in the mass."""
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


cdef inline void take_result_of_row(
    const Job* job, const GroupRows* rows, const LaneGroup[real]* group,
    const Probabilities[Lanes[real]]* probabilities, const LogProbabilities[Lanes[real]]* logs, Py_ssize_t lane
) noexcept nogil:
    """The last sweep over a row, and the class that is set by itself."""
    cdef const real* x = <const real*> rows.x[lane]
    cdef real* g = <real*> rows.grad[lane]
    cdef real own
    if job.result == LOG_SOFTMAX:
        take_plain_result(of_lane(logs[0], lane), x, g, rows.n)
        return
    if job.result == SOFTMAX:
        take_plain_result(of_lane(probabilities[0], lane), <const real*> g, g, rows.n)
        own = lane_of(probabilities.at_top, lane)
        if own != own:
            return
    else:
        take_plain_result(of_lane(group.gradient, lane), <const real*> g, g, rows.n)
        own = lane_of(group.own_grad, lane)
    g[group.label[lane]] = own


cdef inline bint take_results_of_rows(
    const Job* job, const GroupRows* rows, LaneGroup[real]* group, const double* scales, const double* share,
    LaneNumbers* numbers
) noexcept nogil:
    """The results of all rows, whose exponentials were stored; False if finish_lanes refuses the scales."""
    cdef const real* tag = group.m
    cdef Probabilities[Lanes[real]] probabilities
    cdef LogProbabilities[Lanes[real]] logs
    cdef double[MAX_LANES] pull
    cdef Py_ssize_t lane
    if job.result == SOFTMAX:
        find_probabilities_of_lanes(tag, numbers[0], &probabilities)
    elif job.result == LOG_SOFTMAX:
        find_log_probabilities_of_lanes(tag, numbers[0], &logs)
    else:
        if job.formula.z_loss != 0:
            find_pulls(tag, job.formula, numbers[0], pull)
        if not finish_lanes(group, job.formula, share, pull, scales, job.formula.z_loss == 0, numbers[0]):
            return False
        find_grad_at_label(group)
    for lane in range(rows.count):
        if numbers.weight[lane] == 0:
            memset(rows.grad[lane], 0, rows.n * sizeof(real))
        else:
            take_result_of_row(job, rows, group, &probabilities, &logs, lane)
    return True


cdef bint visit_middle(
    const Job* job, Py_ssize_t i, Py_ssize_t count, const int64_t* label, const real* tag, LaneNumbers* numbers
) noexcept nogil:
    """As visit_lanes. But where it returns False, exponentials may have been stored. The logits are what they were."""
    cdef Tile[real] staging
    cdef GroupRows rows
    cdef LaneGroup[real] group
    cdef int64_t[MAX_LANES] labels
    cdef double[MAX_LANES] scales, gaps, share
    cdef double* gaps_or_none = NULL
    cdef bint has_grad = job.has_grad and job.result == GRADIENT
    group.label = labels
    memcpy(labels, label, count * sizeof(int64_t))
    place_group(job, i, count, staging.space, &rows)
    find_classes_of_rows(job, &rows, &group, numbers)
    # What only the wide kernel takes is found before exponentials are stored, since they may overwrite the logits. With
    # a z-loss or smoothing it is found later: see rows_of_group, which takes no such call in place.
    if real is double and not are_finite(numbers.cross, lanes_of(tag)):
        return False
    if job.result == LOGSUMEXP and not are_finite(numbers.m, lanes_of(tag)):
        return False
    if has_grad and not find_group_scales(job, count, numbers, scales, tag):
        return False
    if job.formula.smoothing != 0:
        gaps_or_none = gaps
    take_exponentials_of_rows(&rows, &group, job.has_grad and job.result != LOG_SOFTMAX, gaps_or_none, numbers)
    if job.formula.smoothing != 0:
        smooth_lanes(&group, &job.formula, rows.n, gaps, NULL, share, numbers)
        if not are_finite(numbers.cross, lanes_of(tag)):
            return False
    if job.result == LOGSUMEXP:
        memcpy(numbers.cross, numbers.m, lanes_of(tag) * sizeof(double))
    if not job.has_grad:
        return True
    if not take_results_of_rows(job, &rows, &group, scales, share, numbers):
        return False
    stream_results(&job.grad, i, count, rows.n, <const real*> staging.space, job.streaming)
    return True
