# The entry points of a kernel module, written once: each instruction set's .pyx includes this file.
#
# They turn NumPy arrays into pointers, sizes and scalars, and refuse whatever could not be computed safely by returning
# None, with nothing written. Which arrays to pass, and what to tell the user, is decided in Python.

cimport numpy as cnp
from cython.parallel cimport prange

cnp.import_array()

include "vocabulary.pxi"
include "operands.pxi"
include "rows.pxi"
include "batch.pxi"


cpdef int team_size(Py_ssize_t n_rows, Py_ssize_t n_classes, int n_threads) noexcept:
    """How many threads a call of this size runs on; n_threads = 0 leaves the limit to OpenMP."""
    cdef double work = <double> n_rows * n_classes      # the product of two sizes may not fit an integer
    cdef int limit = n_threads if n_threads > 0 else openmp_threads()
    if not has_openmp():
        return 1
    return max(1, min(limit, <int> min(min(work / LOGITS_PER_THREAD, n_rows), MAX_BLOCKS)))


def max_threads():
    """OpenMP's own limit, here and now; 1 in a build without OpenMP."""
    return openmp_threads()


def openmp():
    """Whether this build can run on several threads."""
    return has_openmp()


cdef int computed_in(cnp.ndarray logits):
    cdef char kind = kind_of(logits)
    if kind == BFLOAT16 or (kind == b"f" and cnp.PyArray_ITEMSIZE(logits) <= 4):
        return cnp.NPY_FLOAT
    return cnp.NPY_DOUBLE


cdef bint describe_inputs(Job* job, cnp.ndarray x, cnp.ndarray t, int typenum):
    """Fill in logits and targets; False if they do not belong together."""
    cdef int axes = cnp.PyArray_NDIM(x) - 1
    if axes < 0 or cnp.PyArray_DIM(x, axes) == 0:
        return False
    job.n_classes = cnp.PyArray_DIM(x, axes)
    job.n_rows = cnp.PyArray_SIZE(x) // job.n_classes
    job.has_labels = cnp.PyArray_NDIM(t) == axes
    if not job.has_labels and cnp.PyArray_NDIM(t) != axes + 1 or not same_shape(x, t, cnp.PyArray_NDIM(t)):
        return False
    read_layout(&job.logits, x, True, typenum)
    read_layout(&job.targets, t, not job.has_labels, typenum)
    if job.logits.element.read == NULL or job.targets.element.read == NULL:
        return False
    if job.has_labels:
        return job.targets.element.read_label != NULL and labels_are_classes(&job.targets, job.n_rows, job.n_classes)
    return True


cdef bint describe_grad(Job* job, g, x, t, int typenum):
    """Fill in where the gradient goes; False if it cannot be written there without harm to an input."""
    job.has_grad = g is not None
    if not job.has_grad:
        return True
    if not cnp.PyArray_CheckExact(g) or not cnp.PyArray_ISWRITEABLE(g):
        return False
    if cnp.PyArray_NDIM(g) != cnp.PyArray_NDIM(x) or not same_shape(x, g, cnp.PyArray_NDIM(x)):
        return False
    read_layout(&job.grad, g, True, typenum)
    if job.grad.element.write == NULL:
        return False
    if job.n_rows == 0:
        return True
    return not may_overlap_itself(g) and not may_overlap(g, t) and (same_elements(g, x) or not may_overlap(g, x))


cdef bint describe_losses(Job* job, cnp.ndarray losses):
    """Fill in where the losses of the rows go."""
    job.losses32 = NULL
    job.losses64 = NULL
    if losses is None:
        return True
    if cnp.PyArray_SIZE(losses) != job.n_rows or not cnp.PyArray_ISCARRAY(losses):
        return False
    if cnp.PyArray_TYPE(losses) == cnp.NPY_FLOAT:
        job.losses32 = <float*> cnp.PyArray_DATA(losses)
        return True
    job.losses64 = <double*> cnp.PyArray_DATA(losses)
    return cnp.PyArray_TYPE(losses) == cnp.NPY_DOUBLE


cdef bint describe_scratch(Job* job, cnp.ndarray scratch, int typenum):
    """Fill in how much of it each thread has; False if it is not enough for what has to be converted."""
    cdef bint converts = not job.logits.direct or (job.has_grad and not job.grad.direct)
    cdef bint converts_targets = not job.has_labels and not job.targets.direct
    job.scratch_per_thread = 0
    if scratch is None:
        return not converts and not converts_targets
    if cnp.PyArray_NDIM(scratch) != 3 or cnp.PyArray_TYPE(scratch) != typenum or not cnp.PyArray_ISCARRAY(scratch):
        return False
    if cnp.PyArray_DIM(scratch, 1) < 1 + converts_targets or cnp.PyArray_DIM(scratch, 2) != job.n_classes:
        return False
    job.scratch_per_thread = cnp.PyArray_DIM(scratch, 1) * job.n_classes
    return cnp.PyArray_DIM(scratch, 0) > 0


def loss_and_grad(
    logits, targets, cnp.ndarray losses, grad, bint mean, int n_threads, cnp.ndarray scratch=None
):
    """Sum or mean of the losses as a float; per-row losses into `losses`, the gradient into `grad`, where given.

    logits (..., C); targets (...) class labels or (..., C) distributions; losses (...) C-contiguous, float32 or
    float64; grad (..., C). Computes in float32 for float16, bfloat16 and float32 logits, and in float64 for all others.
    Arrays that cannot be loaded or stored directly need `scratch`, (threads, 1, C) of the type computed in, or
    (threads, 2, C) for distributions, C-contiguous.

    Returns None, and has written nothing, if an argument is not an array that it can take as it is: another type,
    dtype or shape, a label that is no class, or a `grad` that overlaps an input otherwise than by being the logits.
    """
    cdef Job job
    cdef void* space = NULL
    cdef double total
    cdef int typenum
    if not cnp.PyArray_CheckExact(logits) or not cnp.PyArray_CheckExact(targets):
        return None
    typenum = computed_in(logits)
    if not describe_inputs(&job, logits, targets, typenum):
        return None
    if not describe_grad(&job, grad, logits, targets, typenum) or not describe_losses(&job, losses):
        return None

    if job.n_rows == 0:
        return 0.0
    if not describe_scratch(&job, scratch, typenum):
        return None
    n_threads = team_size(job.n_rows, job.n_classes, n_threads)
    if scratch is not None:
        n_threads = min(n_threads, cnp.PyArray_DIM(scratch, 0))
        space = cnp.PyArray_DATA(scratch)

    job.scale = 1.0 / job.n_rows if mean else 1.0
    # Enough rows to share a logarithm, unless that makes too much work to hand out at once.
    job.rows_per_block = max(
        min(LOGITS_PER_THREAD // job.n_classes, LOSSES_AT_ONCE), (job.n_rows + MAX_BLOCKS - 1) // MAX_BLOCKS)
    with nogil:
        if typenum == cnp.NPY_FLOAT:
            total = visit_all(&job, n_threads, <float*> space)
        else:
            total = visit_all(&job, n_threads, <double*> space)
    return total / job.n_rows if mean else total


cdef double exp_all(const storage* x, double m, storage* out, Py_ssize_t n) noexcept nogil:
    cdef Unit[storage] unit = Unit[storage](m)
    exp_vectors(x, out, 0, n, -1, unit, Sum[storage]())
    return first(exp(Vec[storage](m), unit))


def exp_of(cnp.ndarray x, double m, cnp.ndarray out):
    """The exponentials of x <= m, counted in the unit of a row with the maximum m, and that of m itself, returned.

    For the tests of the bound that vec.hpp states. Contiguous arrays of one float dtype and size.
    """
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT:
        return exp_all(<float*> cnp.PyArray_DATA(x), m, <float*> cnp.PyArray_DATA(out), n)
    return exp_all(<double*> cnp.PyArray_DATA(x), m, <double*> cnp.PyArray_DATA(out), n)


def log1p_of(cnp.ndarray u, cnp.ndarray out):
    """log(1 + u) of u >= 0, for the tests of the bound that vec.hpp states. Contiguous float64 arrays of one size."""
    cdef double* source = <double*> cnp.PyArray_DATA(u)
    cdef double* target = <double*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t i = 0, n = cnp.PyArray_SIZE(u), count
    while i < n:
        count = min(LOSSES_AT_ONCE, n - i)
        store_first(target + i, count, log1p(load_first(source + i, count, 0)))
        i += count
