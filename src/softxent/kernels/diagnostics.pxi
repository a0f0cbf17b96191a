# What `evaluate` tells of each row, as both kernels find it: see row/diagnostics.hpp.


cdef void find_diagnostics(
    const RowArrays[real]* row, int64_t label, const FarRow* far, RowNumbers* numbers, int k
) noexcept nogil:
    """The diagnostics of row k of `numbers`. Of these, only the label's gap and its rank use the label."""
    cdef RowDiagnostics* found = &numbers.diagnostics
    cdef const real* x = row.x
    cdef double m = numbers.m[k] if far == NULL else row_max(x, row.n), low
    cdef RowUnit[real] unit = RowUnit[real](<real> m)
    cdef double R = row.diagnostics.R.minus(0, &found.R_low[k])
    found.R[k] = R
    found.label_gap[k] = m - x[label] if far == NULL else far.label_gap
    found.mean_gap[k] = row.diagnostics.gaps.minus(0, &low) / (R + lane0(exp(Vec[real](m), unit)))
    found.argmax[k] = row.diagnostics.argmax
    if far != NULL:
        found.rank[k] = far.rank
    elif x[label] != m:
        found.rank[k] = row.diagnostics.ahead
    else:
        found.rank[k] = 0 if found.argmax[k] == label else count_ahead(x, row.n, label)
    if not is_finite(R) and has_nan(x, 1, row.n):
        found.argmax[k] = found.rank[k] = -1
        numbers.m[k] = NAN          # which write_diagnostics_of takes for the log-sum-exp if it is infinite


cdef void find_diagnostics_of_lanes(
    const Job* job, LaneGroup[real]* group, const real* x, const real* e, LaneNumbers* numbers
) noexcept nogil:
    """As find_diagnostics, for each lane, from logits x and their exponentials e."""
    cdef RowDiagnostics* found = numbers.diagnostics
    cdef Py_ssize_t n = job.n_classes, k = numbers.k, lane
    if job.builds_target:
        find_label_logits(group, x, n)
    find_diagnostics_of(group[0], x, e, n, numbers[0])
    if are_finite(found.R + k, lanes_of(x)):
        return
    for lane in range(lanes_of(x)):
        if not is_finite(found.R[k + lane]) and has_nan(x + lane, lanes_of(x), n):
            found.argmax[k + lane] = found.rank[k + lane] = -1
            numbers.m[lane] = NAN
