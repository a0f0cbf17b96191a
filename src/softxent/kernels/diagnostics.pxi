# What `evaluate` tells of each row, from the numbers that the kernels find.


cdef inline void set_diagnostics(
    const Job* job, Py_ssize_t i, int64_t argmax, int64_t rank, double log_prob, double lse, double entropy,
    double confidence
) noexcept nogil:
    """Write the diagnostics of row i, in the type computed in."""
    cdef const Diagnostics* to = &job.diagnostics
    to.argmax[i], to.rank[i] = argmax, rank
    if job.in_double:
        (<double*> to.log_prob)[i], (<double*> to.lse)[i], (<double*> to.entropy)[i] = log_prob, lse, entropy
        (<double*> to.confidence)[i] = confidence
    else:
        (<float*> to.log_prob)[i] = <float> log_prob
        (<float*> to.lse)[i] = <float> lse
        (<float*> to.entropy)[i] = <float> entropy
        (<float*> to.confidence)[i] = <float> confidence


cdef void write_diagnostics(
    const Job* job, Py_ssize_t i, Py_ssize_t count, const real* tag, RowNumbers* numbers
) noexcept nogil:
    """Write the diagnostics of `count` rows from i on; those of rows that do not count are 0, and -1."""
    cdef RowDiagnostics* found = &numbers.diagnostics
    cdef double[MAX_ROWS] logs, confidences             # log(S / e_m), and e_m / S
    cdef double m
    cdef Py_ssize_t k = 0
    while k < count:
        lane_logs(tag, found.R + k, found.R_low + k, LaneNumbers(numbers[0], k), &logs[k])
        k += lanes_of(tag)
    k = 0
    while k < count:
        store(&confidences[k], largest_probability(
            tag, load(found.R + k), load(found.R_low + k), load(numbers.m_shifted + k), load(numbers.n0 + k)))
        k += ROWS_AT_ONCE
    for k in range(count):
        if numbers.weight[k] == 0:
            set_diagnostics(job, i + k, -1, -1, 0, 0, 0, 0)
            continue
        m = numbers.m[k]
        set_diagnostics(
            job, i + k, found.argmax[k], found.rank[k], -(logs[k] + found.label_gap[k]),
            m if fabs(m) == INFINITY and found.argmax[k] >= 0 else m + logs[k], logs[k] + found.mean_gap[k],
            confidences[k])
