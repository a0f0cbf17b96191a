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
include "transforms.pxi"
include "lanes.pxi"
include "batch.pxi"


cpdef int thread_limit(int n_threads) noexcept:
    """How many threads a large call runs on, if it may use n_threads; 0 leaves that to OpenMP.

    Never more than there are CPUs to run them on, unless OpenMP itself has been told so.
    """
    return openmp_threads() if n_threads <= 0 else min(n_threads, max(processors(), openmp_threads()))


cpdef int team_size(Py_ssize_t n_rows, Py_ssize_t n_classes, int n_threads) noexcept:
    """How many threads a call of this size runs on."""
    cdef double work = <double> n_rows * n_classes      # the product of two sizes may not fit an integer
    cdef double parts = max(<double> n_rows, work / STRETCH)
    cdef int most = <int> min(min(work / LOGITS_PER_THREAD, parts), MAX_BLOCKS)
    return min(most, thread_limit(n_threads)) if most > 1 else 1


def openmp():
    """Whether this build can run on several threads."""
    return has_openmp()


cdef int computed_in(cnp.ndarray logits):
    cdef char kind = kind_of(logits)
    if kind == BFLOAT16 or (kind == b"f" and cnp.PyArray_ITEMSIZE(logits) <= 4):
        return cnp.NPY_FLOAT
    return cnp.NPY_DOUBLE


cdef bint is_target(targets):
    """Whether it is an array, or two."""
    if type(targets) is tuple:
        return len(targets) == 2 and cnp.PyArray_CheckExact(targets[0]) and cnp.PyArray_CheckExact(targets[1])
    return cnp.PyArray_CheckExact(targets)


cdef bint describe_amounts(Job* job, cnp.ndarray x, cnp.ndarray classes, cnp.ndarray amounts, int axis, int typenum):
    """Fill in targets that are amounts for some classes of each row; False if they are not to be had as they are."""
    cdef LabelRange labels = label_range(job)
    cdef int last = cnp.PyArray_NDIM(x) - 1
    cdef Py_ssize_t i
    if cnp.PyArray_NDIM(classes) != last + 1 or not same_rows(x, axis, classes, last):
        return False
    if not same_shape(classes, amounts):
        return False
    read_layout(&job.targets, classes, last, cnp.NPY_INT64)
    read_layout(&job.amounts, amounts, last, typenum)
    if not (job.targets.typed and job.amounts.typed):
        return False
    if cnp.PyArray_SIZE(classes) > 0 and not (job.targets.packed and job.amounts.packed):
        return False
    job.kind = AMOUNTS
    job.n_amounts = cnp.PyArray_DIM(classes, last)
    for i in range(job.n_rows):
        if not job.targets.element.read_labels(row(&job.targets, i), sizeof(int64_t), job.n_amounts, labels, NULL):
            return False
    return True


cdef bint describe_inputs(Job* job, cnp.ndarray x, targets, int axis, int typenum):
    """Fill in logits and targets; False if they do not belong together."""
    cdef LabelRange labels
    if not 0 <= axis < cnp.PyArray_NDIM(x) or cnp.PyArray_DIM(x, axis) == 0:
        return False
    job.n_classes = cnp.PyArray_DIM(x, axis)
    job.n_rows = cnp.PyArray_SIZE(x) // job.n_classes
    read_layout(&job.logits, x, axis, typenum)
    if job.logits.element.read == NULL:
        return False
    if type(targets) is tuple:
        return not job.has_passed_over and describe_amounts(job, x, targets[0], targets[1], axis, typenum)
    job.kind = LABELS if same_rows(x, axis, targets, -1) else DISTRIBUTIONS
    job.n_amounts = 1 if job.kind == LABELS else 0
    if job.kind == DISTRIBUTIONS and (job.has_passed_over or not same_shape(x, targets)):
        return False
    read_layout(&job.targets, targets, -1 if job.kind == LABELS else axis, typenum)
    if job.kind == LABELS:
        labels = label_range(job)
        return job.targets.element.read_labels != NULL and read_labels(&job.targets, 0, job.n_rows, &labels, NULL)
    return job.targets.element.read != NULL


cdef inline bint is_normal(double x, int typenum):
    """Whether x is in the range of the normal numbers that are computed in, or 0."""
    cdef bint single = typenum == cnp.NPY_FLOAT
    cdef double least = smallest_normal(<float*> NULL) if single else smallest_normal(<double*> NULL)
    return x == 0 or least <= x <= (FLT_MAX if single else DBL_MAX)


cdef bint describe_options(Job* job, cnp.ndarray x, options, int axis, int typenum):
    """Fill in what is not as by default, besides `passed_over`; False if an array is not to be had as it is."""
    cdef cnp.ndarray weights = options.sample_weight, class_weights = options.weight, allowed = options.where
    cdef double smoothing = options.label_smoothing
    job.has_weights = weights is not None
    if job.has_weights:
        if not same_rows(x, axis, weights, -1):
            return False
        read_layout(&job.weights, weights, -1, cnp.NPY_DOUBLE)
        if job.weights.element.read == NULL:
            return False
    if class_weights is not None:
        if cnp.PyArray_NDIM(class_weights) != 1 or cnp.PyArray_DIM(class_weights, 0) != job.n_classes:
            return False
        if cnp.PyArray_TYPE(class_weights) != typenum or not cnp.PyArray_ISCARRAY_RO(class_weights):
            return False
        job.class_weights = cnp.PyArray_DATA(class_weights)
    job.has_allowed = allowed is not None
    if job.has_allowed:
        if cnp.PyArray_TYPE(allowed) != cnp.NPY_BOOL or not same_shape(x, allowed):
            return False
        read_layout(&job.allowed, allowed, axis, typenum)
    job.transform.temperature = options.temperature
    job.transform.cap = 0 if options.softcap is None else options.softcap
    if not (is_normal(job.transform.temperature, typenum) and is_normal(job.transform.cap, typenum)):
        return False
    job.transforming = job.transform.temperature != 1 or job.transform.cap > 0 or job.has_allowed
    job.sloping = job.has_allowed or (job.transform.cap > 0 and job.has_grad)
    job.may_leave_range = job.transform.temperature < 1 and job.transform.cap == 0
    # Weights that change from class to class and a share for all of those that are allowed are no matter of sums.
    job.blending = (class_weights is not None and (smoothing != 0 or job.kind == DISTRIBUTIONS)) or (
        job.has_allowed and smoothing != 0)
    job.smoothing = smoothing if job.blending else 0
    job.formula.smoothing = 0 if job.blending else smoothing
    job.formula.z_loss = options.z_loss
    return True


cdef void describe_no_options(Job* job):
    job.unit = 1
    job.has_weights = job.has_allowed = job.transforming = job.sloping = job.blending = job.may_leave_range = False
    job.class_weights = NULL
    job.transform.temperature = 1


cdef bint overlaps_input(g, targets, options):
    """Whether a gradient may overlap an input other than the logits."""
    if type(targets) is tuple:
        if may_overlap(g, targets[0]) or may_overlap(g, targets[1]):
            return True
    elif may_overlap(g, targets):
        return True
    if options is not None:
        for other in (options.sample_weight, options.weight, options.where):
            if other is not None and may_overlap(g, other):
                return True
    return False


cdef bint describe_grad(Job* job, g, x, targets, options, int axis, int typenum):
    """Fill in where the gradient goes; False if it cannot be written there without harm to an input."""
    if not cnp.PyArray_CheckExact(g) or not cnp.PyArray_ISWRITEABLE(g) or not same_shape(x, g):
        return False
    read_layout(&job.grad, g, axis, typenum)
    if job.grad.element.write == NULL:
        return False
    if job.n_rows == 0:
        return True
    if may_overlap_itself(g) or overlaps_input(g, targets, options):
        return False
    return same_elements(g, x) or not may_overlap(g, x)


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


cdef bint describe_products(Job* job, products):
    """Fill in where the products go: (3, rows) float64 and (rows,) int64, as Products has them."""
    cdef cnp.ndarray numbers, argmax
    cdef double* start
    job.has_products = products is not None
    if not job.has_products:
        return True
    numbers, argmax = products
    if cnp.PyArray_SIZE(numbers) != 3 * job.n_rows or cnp.PyArray_SIZE(argmax) != job.n_rows or job.kind != LABELS:
        return False
    start = <double*> cnp.PyArray_DATA(numbers)
    job.products = Products(start, start + job.n_rows, start + 2 * job.n_rows, <int64_t*> cnp.PyArray_DATA(argmax))
    return True


cdef bint fits_lanes(const Job* job, bint direct, Py_ssize_t itemsize) noexcept:
    """Whether the narrow kernel takes this call: for few classes, and wherever rows cannot be loaded as they are."""
    # Halves are converted by way of a tile of their own.
    cdef bint staged = job.logits.halves or (job.has_grad and job.grad.halves)
    cdef bint tile_of_targets = job.kind == DISTRIBUTIONS or job.blending
    cdef Py_ssize_t n_tiles
    if job.n_classes > TILE_BYTES // LANE_BYTES:        # nor would the product below fit
        return False
    staged |= job.kind == DISTRIBUTIONS and job.targets.halves
    n_tiles = 1 + tile_of_targets + job.sloping + job.has_products + staged
    # And a row beyond the tiles, which lanes without a row of their own are written to.
    if n_tiles * job.n_classes * LANE_BYTES + job.n_classes * itemsize > TILE_BYTES:
        return False
    return not direct or (job.n_classes * itemsize <= NARROW_BYTES and job.n_rows >= FEW_ROWS)


cdef bint describe_scratch(Job* job, cnp.ndarray scratch, bint in_place, int typenum):
    """Fill in how rows are visited, and how much scratch each thread has; False if that is not enough."""
    cdef bint makes_target = job.blending or (job.kind == DISTRIBUTIONS and not job.targets.direct)
    cdef bint direct = job.logits.direct and (not job.has_grad or job.grad.direct) and not makes_target
    cdef Py_ssize_t n_scratch = 3 if job.sloping else 2 if makes_target else 1
    cdef Py_ssize_t itemsize = sizeof(float) if typenum == cnp.NPY_FLOAT else sizeof(double)
    job.by_lanes = fits_lanes(job, direct, itemsize)
    # A gradient that no cache can hold is better stored past the caches, at once and in whole cache lines.
    job.streaming = job.has_grad and not in_place and <double> job.n_rows * job.n_classes >= STREAM_FROM
    if job.streaming:
        if job.by_lanes:
            job.streaming = job.grad.typed and job.grad.step == itemsize and job.grad.class_stride % 64 == 0
        else:
            job.streaming = direct and not job.sloping and job.n_classes >= STRETCH
    job.scratch_per_thread = 0
    direct = direct and not job.sloping and (job.has_grad or not job.transforming)
    if job.by_lanes or (direct and not job.streaming):
        return True
    if scratch is None:
        return False
    if cnp.PyArray_NDIM(scratch) != 3 or cnp.PyArray_TYPE(scratch) != typenum or not cnp.PyArray_ISCARRAY(scratch):
        return False
    if cnp.PyArray_DIM(scratch, 1) < n_scratch or cnp.PyArray_DIM(scratch, 2) != job.n_classes:
        return False
    job.scratch_per_thread = cnp.PyArray_DIM(scratch, 1) * job.n_classes
    return cnp.PyArray_DIM(scratch, 0) > 0


cdef double divisor(const Job* job, normalizer, int typenum):
    """What the mean divides by, counted in the unit of the job."""
    cdef float one = 1
    cdef double double_one = 1
    if normalizer is not None:
        return <double> normalizer * job.unit
    return total_weight(job, &one) if typenum == cnp.NPY_FLOAT else total_weight(job, &double_one)


def loss_and_grad(
    logits, targets, int axis, cnp.ndarray losses, grad, bint mean, int n_threads, cnp.ndarray scratch=None,
    options=None, products=None
):
    """Sum or mean of the losses as a float; per-row losses into `losses`, the gradient into `grad`, where given.

    logits with C classes along `axis`; targets, class labels without that axis or distributions with it, or a tuple of
    classes (int64) and their amounts (of the type computed in), along the last axis, contiguous there; losses without
    the class axis, C-contiguous, float32 or float64; grad like logits. Computes in float32 for float16, bfloat16 and
    float32 logits, and in float64 for all others. Where C is large, rows that cannot be loaded or stored directly, and
    a gradient beyond all caches, need `scratch`, C-contiguous, of the type computed in: (threads, 1, C),
    (threads, 2, C) for distributions, and (threads, 3, C) with options.

    options is an _inputs.Options whose scalars are good: sample_weight of any real dtype, weight C-contiguous and of
    the type computed in, where of the shape of the logits. products are filled as Products says.

    Returns None, and has written nothing, if an argument is not an array that it can take as it is: another type,
    dtype or shape, a label that is no class, or a `grad` that overlaps an input otherwise than by being the logits.
    """
    cdef Job job
    cdef void* space = NULL
    cdef double loss, denominator
    cdef Py_ssize_t i
    cdef int typenum
    passed_over = normalizer = None
    if not cnp.PyArray_CheckExact(logits) or not is_target(targets):
        return None
    typenum = computed_in(logits)
    if axis < 0:
        axis += cnp.PyArray_NDIM(logits)
    if options is not None:
        passed_over, normalizer = options.ignore_index, options.normalizer
    job.has_passed_over = passed_over is not None
    job.passed_over = passed_over if job.has_passed_over else 0
    if not describe_inputs(&job, logits, targets, axis, typenum):
        return None
    job.has_grad = grad is not None
    describe_no_options(&job)
    if options is not None and not describe_options(&job, logits, options, axis, typenum):
        return None
    if job.has_grad and not describe_grad(&job, grad, logits, targets, options, axis, typenum):
        return None
    if not describe_losses(&job, losses) or not describe_products(&job, products):
        return None

    if job.n_rows == 0:
        return 0.0
    if not describe_scratch(&job, scratch, grad is not None and same_elements(grad, logits), typenum):
        return None
    n_threads = team_size(job.n_rows, job.n_classes, n_threads)
    job.by_stretches = job.n_classes > STRETCH and job.n_rows < 2 * n_threads and job.n_rows % n_threads != 0
    if not job.by_stretches:
        n_threads = min(n_threads, job.n_rows)
    if job.scratch_per_thread > 0:
        space = cnp.PyArray_DATA(scratch)
        if not job.by_stretches:
            n_threads = min(n_threads, cnp.PyArray_DIM(scratch, 0))
    job.prefetching = <double> job.n_rows * job.n_classes >= PREFETCH_FROM
    denominator = 1
    if mean:
        denominator = divisor(&job, normalizer, typenum)
        if not LEAST_DIVISOR < fabs(denominator * job.transform.temperature) < 1 / LEAST_DIVISOR:
            job.unit = LEAST_DIVISOR if fabs(denominator * job.transform.temperature) > 1 else 1 / LEAST_DIVISOR
            denominator = divisor(&job, normalizer, typenum)
        if denominator == 0 and not job.has_products:
            for i in range(job.n_rows if job.has_grad else 0):
                zero_row(&job.grad, i, job.n_classes)
            return 0.0
    job.scale = 1 / (denominator * job.transform.temperature)
    # Enough rows to fill the lanes or to share a logarithm, unless that makes too much work to hand out at once.
    job.rows_per_block = max(
        min(LOGITS_PER_THREAD // job.n_classes, 2 * MAX_LANES), (job.n_rows + MAX_BLOCKS - 1) // MAX_BLOCKS)
    if job.n_classes <= TILE_BYTES // LANE_BYTES:
        job.rows_per_block = (job.rows_per_block + MAX_LANES - 1) // MAX_LANES * MAX_LANES
    with nogil:
        if typenum == cnp.NPY_FLOAT:
            loss = visit_all(&job, n_threads, denominator, <float*> space)
        else:
            loss = visit_all(&job, n_threads, denominator, <double*> space)
    return loss


cdef double exp_all(const storage* x, double m, storage* out, Py_ssize_t n) noexcept nogil:
    cdef RowUnit[storage] unit = RowUnit[storage](<storage> m)
    exp_vectors(x, out, 0, n, -1, unit, Sum[storage]())
    return first(exp(Vec[storage](m), unit))


def exp_of(cnp.ndarray x, double m, cnp.ndarray out):
    """The exponentials of x <= m, counted in the unit of a row with the maximum m, and that of m itself, returned.

    For the tests of the bound that rowmath.hpp states. Contiguous arrays of one float dtype and size.
    """
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT:
        return exp_all(<float*> cnp.PyArray_DATA(x), m, <float*> cnp.PyArray_DATA(out), n)
    return exp_all(<double*> cnp.PyArray_DATA(x), m, <double*> cnp.PyArray_DATA(out), n)


def log1p_of(cnp.ndarray u, cnp.ndarray out):
    """log(1 + u) of u >= 0, for the tests of the bound that rowmath.hpp states. Contiguous float64 of one size."""
    cdef double* source = <double*> cnp.PyArray_DATA(u)
    cdef double* target = <double*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t i = 0, n = cnp.PyArray_SIZE(u), count
    while i < n:
        count = min(ROWS_AT_ONCE, n - i)
        store_first(target + i, count, log1p(load_first(source + i, count, 0)))
        i += count
