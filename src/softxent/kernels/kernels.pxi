# The entry points of a kernel module, written once: each instruction set's .pyx includes this file.
#
# They turn NumPy arrays into pointers, sizes and scalars, refuse whatever could not be computed safely (by returning
# None, with nothing written), share the rows out over the threads, and add up the losses in an order that does not
# depend on the number of threads. Which arrays to pass, and what to tell the user, is decided in Python.

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport INFINITY

cnp.import_array()

cdef extern from "vec.hpp" namespace "softxent" nogil:
    cdef cppclass Vec[T]:
        Vec()
        Vec(double)
        Vec operator+(Vec)
        Vec operator-(Vec)
        Vec operator*(Vec)

    cdef cppclass Block[T]:
        Block()
        Block(double)
        Block operator*(Block)

    cdef cppclass Sum[T]:
        Sum()
        void add(Vec[T])
        double value()

    cdef cppclass Unit[T]:
        Unit()
        Unit(double)

    Py_ssize_t vec_lanes[T](const T*)
    Py_ssize_t block_lanes[T](const T*)
    Vec[T] load[T](const T*)
    Vec[T] load_first[T](const T*, Py_ssize_t n, double fill)
    Block[T] load_block[T](const T*)
    void store[T](T*, Vec[T])
    void store[T](T*, Block[T])
    void store_first[T](T*, Py_ssize_t n, Vec[T])
    Vec[T] fold_sum[T](Block[T])
    Vec[T] fma[T](Vec[T], Vec[T], Vec[T])
    Vec[T] maximum[T](Vec[T], Vec[T])
    Block[T] maximum[T](Block[T], Block[T])
    Vec[T] select_equal[T](Vec[T], Vec[T], Vec[T], Vec[T])
    Vec[T] without_lane[T](Vec[T], Py_ssize_t lane)
    Vec[T] exp[T](Vec[T], const Unit[T]&)
    Block[T] exp[T](Block[T], const Unit[T]&)
    unsigned int equal_bits[T](Vec[T], Vec[T])
    int lowest_bit(unsigned int)
    double largest[T](Vec[T])
    Vec[T] fold_largest[T](Block[T])
    Vec[double] log1p(Vec[double])

cdef extern from "elements.hpp" namespace "softxent" nogil:
    cdef cppclass Element:
        double (*read)(const char*)
        void (*write)(char*, double)
        long long (*read_label)(const char*)
        Py_ssize_t (*check_labels)(const char*, Py_ssize_t stride, Py_ssize_t n, long long n_classes)

    Element element_of(char kind, Py_ssize_t itemsize, bint swapped)

cdef extern from "threads.hpp" namespace "softxent" nogil:
    bint has_openmp()
    int openmp_threads()
    int this_thread()

ctypedef fused storage:
    float
    double

cdef enum:
    MAX_AXES = 64          # NumPy's own limit
    MAX_BLOCKS = 512       # of rows: what is shared out over threads, and the units in which losses are added
    LOSSES_AT_ONCE = 8     # lanes of Vec[double]
    LOGITS_PER_THREAD = 16384   # less work than this is not worth waking a thread for (measured)

include "operands.pxi"
include "rows.pxi"


cdef struct Job:
    Rows logits
    Rows targets
    Rows grad
    bint has_grad
    bint has_labels
    Py_ssize_t n_rows
    Py_ssize_t n_classes
    Py_ssize_t rows_per_block
    double scale
    float* losses32          # at most one of the two is given
    double* losses64


cdef struct Partial:
    # A sum of losses and what its additions rounded off.
    double sum
    double lost


cdef inline void add_loss(Partial* partial, double loss) noexcept nogil:
    cdef double next = partial.sum + loss
    cdef double of_loss = next - partial.sum
    partial.lost += (partial.sum - (next - of_loss)) + (loss - of_loss)
    partial.sum = next


cdef inline void read_row(storage* to, const char* source, const Rows* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(n):
        to[c] = <storage> rows.element.read(source + c * rows.class_stride)


cdef inline void write_row(char* to, const storage* source, const Rows* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(n):
        rows.element.write(to + c * rows.class_stride, source[c])


cdef inline Outcome visit_row_of(const Job* job, Py_ssize_t i, storage* scratch) noexcept nogil:
    """Row i, read into and written from `scratch`, which holds two rows, where it cannot be loaded or stored as it is."""
    cdef Py_ssize_t n = job.n_classes, label = 0
    cdef storage* x = <storage*> row(&job.logits, i)
    cdef storage* g = NULL
    cdef storage* t = NULL
    cdef Outcome outcome
    if job.has_grad:
        g = <storage*> row(&job.grad, i) if job.grad.direct else scratch
    if not job.logits.direct:
        x = scratch if g == NULL else g
        read_row(x, row(&job.logits, i), &job.logits, n)
    if job.has_labels:
        label = job.targets.element.read_label(row(&job.targets, i))
    elif job.targets.direct:
        t = <storage*> row(&job.targets, i)
    else:
        t = scratch + n
        read_row(t, row(&job.targets, i), &job.targets, n)
    outcome = visit_row(x, g, t, label, n, job.scale)
    if job.has_grad and not job.grad.direct:
        write_row(row(&job.grad, i), g, &job.grad, n)
    return outcome


cdef void visit_block(const Job* job, Py_ssize_t block, storage* scratch, Partial* partial) noexcept nogil:
    cdef Py_ssize_t i = block * job.rows_per_block
    cdef Py_ssize_t stop = min(i + job.rows_per_block, job.n_rows)
    cdef Py_ssize_t k, count
    cdef double[LOSSES_AT_ONCE] ratios, masses, crosses, losses
    cdef Vec[double] logs
    cdef Outcome outcome
    partial.sum = partial.lost = 0
    while i < stop:
        count = min(stop - i, LOSSES_AT_ONCE)
        for k in range(count):
            outcome = visit_row_of(job, i + k, scratch)
            ratios[k] = outcome.ratio
            masses[k] = outcome.mass
            crosses[k] = outcome.cross
        logs = log1p(load_first(&ratios[0], count, 0))
        store_first(&losses[0], count, fma(load_first(&masses[0], count, 0), logs, load_first(&crosses[0], count, 0)))
        for k in range(count):
            add_loss(partial, losses[k])
            if job.losses32 != NULL:
                job.losses32[i + k] = <float> losses[k]
            elif job.losses64 != NULL:
                job.losses64[i + k] = losses[k]
        i += count


cdef void visit_all(const Job* job, int n_threads, storage* scratch, Partial* partials, Py_ssize_t n_blocks) noexcept nogil:
    cdef Py_ssize_t block
    if n_threads == 1:
        for block in range(n_blocks):
            visit_block(job, block, scratch, partials + block)
    else:
        for block in prange(n_blocks, num_threads=n_threads, schedule="static"):
            visit_block(job, block, scratch + 2 * job.n_classes * this_thread(), partials + block)


cdef bint labels_are_classes(const Job* job) noexcept nogil:
    cdef Py_ssize_t i = 0, length = job.n_rows, stride = 0
    if job.targets.n_axes > 0:
        length = job.targets.shape[job.targets.n_axes - 1]
        stride = job.targets.strides[job.targets.n_axes - 1]
    while i < job.n_rows:
        if job.targets.element.check_labels(row(&job.targets, i), stride, length, job.n_classes) < length:
            return False
        i += length
    return True


cdef bint same_leading_shape(cnp.ndarray a, cnp.ndarray b, int ndim) noexcept:
    cdef int axis
    for axis in range(ndim):
        if cnp.PyArray_DIM(a, axis) != cnp.PyArray_DIM(b, axis):
            return False
    return True


cdef void memory_bounds(cnp.ndarray array, size_t* low, size_t* high) noexcept:
    cdef Py_ssize_t extent
    cdef int axis
    low[0] = high[0] = <size_t> cnp.PyArray_DATA(array)
    for axis in range(cnp.PyArray_NDIM(array)):
        extent = (cnp.PyArray_DIM(array, axis) - 1) * cnp.PyArray_STRIDE(array, axis)
        if extent < 0:
            low[0] += extent
        else:
            high[0] += extent
    high[0] += cnp.PyArray_ITEMSIZE(array)


cdef bint may_overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef size_t a_low, a_high, b_low, b_high
    memory_bounds(a, &a_low, &a_high)
    memory_bounds(b, &b_low, &b_high)
    return a_low < b_high and b_low < a_high


cdef bint same_elements(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Two arrays of one shape whose elements lie in the same places."""
    cdef int axis
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b) or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_STRIDE(b, axis):
            return False
    return True


def team_size(Py_ssize_t n_rows, Py_ssize_t n_classes, int n_threads):
    """How many threads a call of this size runs on; n_threads = 0 leaves the limit to OpenMP."""
    cdef Py_ssize_t limit = n_threads if n_threads > 0 else openmp_threads()
    if not has_openmp():
        return 1
    # n_rows * n_classes as a double: the product of two sizes may not fit an integer
    return max(1, min(limit, min(min(n_rows, MAX_BLOCKS), <Py_ssize_t> (<double> n_rows * n_classes / LOGITS_PER_THREAD))))


def max_threads():
    """OpenMP's own limit, here and now; 1 in a build without OpenMP."""
    return openmp_threads()


def openmp():
    """Whether this build runs rows on several threads."""
    return has_openmp()


def loss_and_grad(logits, targets, losses, grad, bint mean, int n_threads, scratch=None):
    """Sum or mean of the losses as a float; per-row losses into `losses`, the gradient into `grad`, where given.

    logits (..., C); targets (...) class labels or (..., C) distributions; losses (...) C-contiguous, float32 or
    float64; grad (..., C). Computes in float32 for float32 logits and in float64 for all others. Arrays that the
    kernel cannot load or store directly need `scratch`, (threads, 2, C) of the type computed in.

    Returns None, and has written nothing, if an argument is not an array that it can take as it is: another type,
    dtype or shape, a label that is no class, or a `grad` that overlaps an input otherwise than by being the logits.
    """
    cdef cnp.ndarray x, t, g = None, l
    cdef Job job
    cdef Partial[MAX_BLOCKS] partials
    cdef Partial total
    cdef Py_ssize_t n_blocks, block
    cdef int axes, typenum
    cdef bint has_scratch = scratch is not None
    cdef void* space = NULL

    if not cnp.PyArray_CheckExact(logits) or not cnp.PyArray_CheckExact(targets):
        return None
    x, t = logits, targets
    axes = cnp.PyArray_NDIM(x) - 1
    if axes < 0 or cnp.PyArray_DIM(x, axes) == 0:
        return None
    typenum = cnp.NPY_FLOAT if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT else cnp.NPY_DOUBLE
    job.n_classes = cnp.PyArray_DIM(x, axes)
    job.n_rows = cnp.PyArray_SIZE(x) // job.n_classes
    read_layout(&job.logits, x, True)
    if job.logits.element.read == NULL:
        return None
    job.logits.direct = job.logits.direct and cnp.PyArray_TYPE(x) == typenum

    job.has_labels = cnp.PyArray_NDIM(t) == axes
    if not job.has_labels and cnp.PyArray_NDIM(t) != axes + 1 or not same_leading_shape(x, t, cnp.PyArray_NDIM(t)):
        return None
    read_layout(&job.targets, t, not job.has_labels)
    if job.has_labels:
        if job.targets.element.read_label == NULL or not labels_are_classes(&job):
            return None
    elif job.targets.element.read == NULL:
        return None
    else:
        job.targets.direct = job.targets.direct and cnp.PyArray_TYPE(t) == typenum

    job.has_grad = grad is not None
    if job.has_grad:
        if not cnp.PyArray_CheckExact(grad):
            return None
        g = grad
        if cnp.PyArray_NDIM(g) != axes + 1 or not same_leading_shape(x, g, axes + 1) or not cnp.PyArray_ISWRITEABLE(g):
            return None
        read_layout(&job.grad, g, True)
        if job.grad.element.write == NULL:
            return None
        job.grad.direct = job.grad.direct and cnp.PyArray_TYPE(g) == typenum
        if may_overlap(g, t) or (may_overlap(g, x) and not same_elements(g, x)):
            return None

    job.losses32 = NULL
    job.losses64 = NULL
    if losses is not None:
        l = losses
        if cnp.PyArray_SIZE(l) != job.n_rows or not cnp.PyArray_ISCARRAY(l):
            return None
        if cnp.PyArray_TYPE(l) == cnp.NPY_FLOAT:
            job.losses32 = <float*> cnp.PyArray_DATA(l)
        elif cnp.PyArray_TYPE(l) == cnp.NPY_DOUBLE:
            job.losses64 = <double*> cnp.PyArray_DATA(l)
        else:
            return None

    n_threads = team_size(job.n_rows, job.n_classes, n_threads)
    if has_scratch:
        l = scratch
        if cnp.PyArray_TYPE(l) != typenum or not cnp.PyArray_ISCARRAY(l):
            return None
        n_threads = min(n_threads, cnp.PyArray_SIZE(l) // (2 * job.n_classes))
        if n_threads < 1:
            return None
        space = cnp.PyArray_DATA(l)
    elif not job.logits.direct or not (job.has_labels or job.targets.direct) or (job.has_grad and not job.grad.direct):
        return None

    if job.n_rows == 0:
        return 0.0
    job.scale = 1.0 / job.n_rows if mean else 1.0
    job.rows_per_block = (job.n_rows + MAX_BLOCKS - 1) // MAX_BLOCKS
    n_blocks = (job.n_rows + job.rows_per_block - 1) // job.rows_per_block
    with nogil:
        if typenum == cnp.NPY_FLOAT:
            visit_all(&job, n_threads, <float*> space, partials, n_blocks)
        else:
            visit_all(&job, n_threads, <double*> space, partials, n_blocks)
        total.sum = total.lost = 0
        for block in range(n_blocks):
            add_loss(&total, partials[block].sum)
            total.lost += partials[block].lost
    # With an infinite loss `lost` is NaN (inf - inf) and the sum is already the answer.
    if total.sum - total.sum == 0:
        total.sum += total.lost
    return total.sum / job.n_rows if mean else total.sum
