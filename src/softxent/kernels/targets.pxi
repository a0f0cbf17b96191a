# Labels and weights of rows, and their targets as the kernels see them.

cdef double SMALLEST = 5e-324


cdef inline LabelRange label_range(const Job* job) noexcept nogil:
    cdef LabelRange labels
    labels.n_classes = job.n_classes
    labels.ignored = &job.ignored if job.has_ignored else NULL
    return labels


cdef bint labels_are_good(const Job* job) noexcept nogil:
    """Whether all labels, or indices of sparse targets, are classes or the ignored label."""
    cdef LabelRange labels = label_range(job)
    cdef Py_ssize_t i
    if job.kind == LABELS:
        return read_labels(&job.targets, 0, job.n_rows, &labels, NULL)
    if job.targets.n_axes == 1 and job.targets.step == job.n_entries * <Py_ssize_t> sizeof(int64_t):
        return element_of(job.targets).read_labels(
            job.targets.data, sizeof(int64_t), job.n_rows * job.n_entries, labels, NULL)
    for i in range(job.n_rows):
        if not element_of(job.targets).read_labels(
            row_address(&job.targets, i), sizeof(int64_t), job.n_entries, labels, NULL
        ):
            return False
    return True


cdef inline void begin_rows(
    const Job* job, Py_ssize_t i, Py_ssize_t count, int64_t* label, double* weight
) noexcept nogil:
    """Read labels and weights of `count` rows from i on. The weights are multiplied by job.unit.

    Rows that do not count get the weight 0. Lanes after the last row get the weight job.unit and the label 0. If the
    product underflows to 0, the weight is the smallest number, because its row counts.
    """
    cdef LabelRange labels = label_range(job)
    cdef Py_ssize_t k, stop = MAX_LANES if count <= MAX_LANES else MAX_ROWS
    for k in range(MAX_LANES):
        weight[k] = job.unit
    for k in range(MAX_LANES, stop):
        weight[k] = job.unit
    if job.has_sample_weight:
        read_numbers(&job.sample_weight, i, count, weight)
        if job.unit != 1:
            for k in range(count):
                if weight[k] != 0:
                    weight[k] *= job.unit
                    weight[k] = SMALLEST if weight[k] == 0 else weight[k]
    if job.kind == LABELS:
        # Labels were checked, but another thread may have changed them since. read_labels gives 0 for what is no
        # class: the result is wrong then, but no other memory is touched.
        read_labels(&job.targets, i, count, &labels, label)
        for k in range(count, stop if job.by_lanes else count):
            label[k] = 0
    elif job.kind == NO_TARGET:
        for k in range(stop):
            label[k] = 0
    if job.has_ignored:
        for k in range(count):
            if label[k] < 0:
                label[k] = 0
                weight[k] = 0


cdef inline void read_target(
    const Job* job, Py_ssize_t i, const int64_t* label, const real* one, Target[real]* target
) noexcept nogil:
    """Fill in the target of row i. With labels, its one entry is `label` with the amount `one`.

    A distribution is not filled in here.
    """
    target.distribution = NULL
    target.indices = label
    target.probs = one
    target.count = job.n_entries
    target.class_weight = <real*> job.class_weight
    if job.kind == SPARSE:
        target.indices = <int64_t*> row_address(&job.targets, i)
        target.probs = <real*> row_address(&job.probs, i)


cdef double target_mass(const Job* job, Py_ssize_t i, const real* one) noexcept nogil:
    """The sum of a distribution or sparse target, multiplied by the class weights."""
    cdef Target[real] target
    cdef Carried[double] total = Carried[double](0, 0)
    cdef Sum[real] sum
    cdef real[PIECE] piece
    cdef double rounded
    cdef Py_ssize_t k, start = 0, count
    read_target(job, i, NULL, one, &target)
    if job.kind == SPARSE:
        for k in range(target.count):
            start = target.indices[k]
            total.add(target.amount(k, start) if 0 <= start < job.n_classes else 0)
        return total.minus(0, &rounded)
    while start < job.n_classes:
        count = min(PIECE, job.n_classes - start)
        read_row(&piece[0], row_address(&job.targets, i) + start * job.targets.class_stride, &job.targets, count)
        k = 0
        while k < count:
            sum.add(load_first(&piece[k], min(vec_lanes(one), count - k), 0)
                    * load_first(target.class_weight + start + k, min(vec_lanes(one), count - k), 0))
            k += vec_lanes(one)
        start += count
    return sum.value().minus(0, &rounded)


cdef double total_weight(const Job* job, Panels* panels, const real* one) noexcept nogil:
    """The sum of the weights of all rows; a row of weight 0 adds nothing, even if its class weight is infinite.

    Distributions are read by way of `panels`, unless that is NULL.
    """
    cdef Sum[double] total
    cdef double[MAX_ROWS] weight
    cdef int64_t[MAX_ROWS] label
    cdef Py_ssize_t i = 0, count, k
    cdef double rounded
    if not job.has_sample_weight and not job.has_ignored and job.class_weight == NULL:
        return job.n_rows * job.unit
    while i < job.n_rows:
        count = min(job.n_rows - i, <Py_ssize_t> MAX_ROWS)
        begin_rows(job, i, count, label, weight)
        if job.class_weight != NULL:
            for k in range(count):
                if panels != NULL:
                    turn_panels(panels, i + k, one)
                if weight[k] != 0:
                    weight[k] *= (
                        (<real*> job.class_weight)[label[k]] if job.kind == LABELS else
                        target_mass(job if panels == NULL else &panels.job, i + k, one))
        k = 0
        while k < count:
            total.add(load_first(&weight[k], min(count - k, <Py_ssize_t> ROWS_AT_ONCE), 0))
            k += ROWS_AT_ONCE
        i += count
    return total.value().minus(0, &rounded)


cdef double largest_weight(const Job* job) noexcept nogil:
    """The largest absolute value of the weights of rows."""
    cdef double[MAX_ROWS] weight
    cdef int64_t[MAX_ROWS] label
    cdef double largest = 0
    cdef Py_ssize_t i = 0
    while i < job.n_rows:
        begin_rows(job, i, min(job.n_rows - i, <Py_ssize_t> MAX_ROWS), label, weight)
        largest = max(largest, largest_size(weight, min(job.n_rows - i, <Py_ssize_t> MAX_ROWS)))
        i += MAX_ROWS
    return largest


cdef inline double add_entries(
    const Target[real]* target, real* t, Py_ssize_t stride, Py_ssize_t n
) noexcept nogil:
    """Add the entries of a target to t, whose n classes are `stride` apart; returns their sum."""
    cdef Carried[double] mass = Carried[double](0, 0)
    cdef double low
    cdef Py_ssize_t i, c
    for i in range(target.count):
        c = target.indices[i]
        if 0 <= c < n:
            t[c * stride] += target.probs[i]
            mass.add(target.probs[i])
    return mass.minus(0, &low)


cdef inline void build_target(
    const Target[real]* target, const unsigned char* allowed, double smoothing, real* t, Py_ssize_t n
) noexcept nogil:
    """t becomes the whole target, smoothed over the allowed classes (NULL: over all), then multiplied by class weights.

    If the target is a distribution, t holds it already.
    """
    cdef const real* class_weight = target.class_weight
    cdef double mass = 0
    if target.distribution == NULL:
        memset(t, 0, n * sizeof(real))
        mass = add_entries(target, t, 1, n)
    elif smoothing != 0:
        mass = row_mass(t, n)
    blend_row(t, n, smoothing, mass, allowed, class_weight)


cdef inline void find_sparse(
    RowSums* sums, const real* x, Py_ssize_t stride, const Target[real]* target, Py_ssize_t start, Py_ssize_t n,
    double m
) noexcept nogil:
    """Add up a sparse target over the classes [start, start + n): sum t (m - x), sum t, and its first entry at m.

    Logits are `stride` apart, so that a lane of a tile can be walked like a row.
    """
    cdef Carried[double] cross = Carried[double](0, 0), rest = cross
    cdef Py_ssize_t i, c, argmax = -1
    cdef double amount, logit, t_at_argmax = 0
    for i in range(target.count):
        c = target.indices[i] - start
        if not 0 <= c < n:
            continue
        amount = target.amount(i, start + c)
        if amount != 0:
            logit = x[c * stride]
            cross.add(amount * (m - logit))
            if argmax < 0 and logit == m:
                argmax = c
            if argmax == c:
                t_at_argmax += amount
            else:
                rest.add(amount)
    sums.cross, sums.rest = cross, rest
    sums.argmax, sums.t_at_argmax = argmax, t_at_argmax
