# What `evaluate` tells of each row, as the kernels find it: see row/diagnostics.hpp.


cdef inline void end_diagnostics(
    const DiagnosticSums* sums, const real* x, Py_ssize_t n, int64_t label, double m, double e_m, const FarRow* far,
    RowDiagnostics* found, Py_ssize_t k, double* m_found
) noexcept nogil:
    """The diagnostics of row k, from its sums. Of these, only the label's gap and its rank use the label.

    If a logit is NaN, `m_found` becomes NaN, which write_diagnostics_of takes for the log-sum-exp if it is infinite.
    """
    cdef double low, R = sums.R.minus(0, &found.R_low[k])
    found.R[k] = R
    found.label_gap[k] = m - x[label] if far == NULL else far.label_gap
    found.mean_gap[k] = sums.gaps.minus(0, &low) / (R + e_m)
    found.argmax[k] = sums.argmax
    if far != NULL:
        found.rank[k] = far.rank
    elif x[label] != m:
        found.rank[k] = sums.ahead
    else:
        found.rank[k] = 0 if found.argmax[k] == label else count_ahead(x, n, label)
    if not is_finite(R) and has_nan(x, 1, n):
        found.argmax[k] = found.rank[k] = -1
        m_found[0] = NAN


cdef void find_diagnostics(
    const RowArrays[real]* row, int64_t label, const FarRow* far, RowNumbers* numbers, int k
) noexcept nogil:
    """The diagnostics of row k of `numbers`."""
    cdef const real* x = row.x
    cdef double m = numbers.m[k] if far == NULL else row_max(x, row.n)
    cdef RowUnit[real] unit = RowUnit[real](<real> m)
    cdef double e_m = lane0(exp(Vec[real](m), unit))
    end_diagnostics(row.diagnostics, x, row.n, label, m, e_m, far, &numbers.diagnostics, k, &numbers.m[k])


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
