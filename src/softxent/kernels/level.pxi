# The module of a level: the loops, compiled with its instructions, and the table of functions that call/ uses. The
# capsule of this table is its only Python object.

from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange

include "job.pxi"
include "vocabulary.pxi"
include "arrays.pxi"
include "panels.pxi"
include "targets.pxi"
include "far.pxi"
include "diagnostics.pxi"
include "tiles.pxi"
include "results.pxi"
include "long_rows.pxi"
include "wide.pxi"
include "narrow.pxi"
include "middle.pxi"
include "batch.pxi"


cdef double exp_all(const real* x, double m, real* out, Py_ssize_t n) noexcept nogil:
    cdef RowUnit[real] unit = RowUnit[real](<real> m)
    exp_sum(x, out, n, -1, unit, 0)
    return lane0(exp(Vec[real](m), unit))


cdef double exp_of(const void* x, double m, void* out, Py_ssize_t n, int in_double) noexcept nogil:
    if in_double:
        return exp_all(<const double*> x, m, <double*> out, n)
    return exp_all(<const float*> x, m, <float*> out, n)


cdef void log1p_of(const double* u, double* out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, count
    while i < n:
        count = min(<Py_ssize_t> ROWS_AT_ONCE, n - i)
        store_first(out + i, count, log1p(load_first(u + i, count, 0)))
        i += count


cdef int check_labels(const Job* job) noexcept nogil:
    return labels_are_good(job)


cdef KernelTable kernel_table
kernel_table.version = TABLE_VERSION
kernel_table.size = sizeof(KernelTable)
kernel_table.labels_are_good = check_labels
kernel_table.run = run
kernel_table.exp_of = exp_of
kernel_table.log1p_of = log1p_of

table = PyCapsule_New(&kernel_table, "softxent.kernels.table", NULL)
