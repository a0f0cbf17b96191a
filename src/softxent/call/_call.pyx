# From NumPy arrays to a Job, and from the Job to its result. This is compiled once, for any CPU. The kernels of a level
# come as a table of functions.
#
# Each call is examined once. Either it is done, or the status that is returned says why not, and nothing has been
# written. Python decides which arrays to pass, and what to tell the user.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.float cimport DBL_MAX, DBL_MIN, FLT_MAX, FLT_MIN
from libc.stddef cimport size_t
from libc.stdint cimport SIZE_MAX
from libc.stdlib cimport llabs
cimport cython
cimport numpy as cnp

cnp.import_array()

include "job.pxi"

cdef extern from "threads.hpp" namespace "softxent" nogil:
    bint has_openmp()
    int openmp_threads()
    int processors()

include "operands.pxi"
include "plan.pxi"
include "interface.pxi"

# What `Kernels.run` returns in place of a loss.
NOT_AS_IT_IS = 1     # kernels do not take this type, dtype, shape or size of weights, or a label is no class
OVERLAPS = 2         # the gradient would overwrite an input that is still needed; all else is in order
# In place of targets, for a result that needs none.
cdef object none_needed = object()
NONE_NEEDED = none_needed
# What it is asked for: Result in job.hpp.
RESULTS = {"gradient": GRADIENT, "softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP,
           "product": PRODUCT, "hessian": HESSIAN, "product of probs": PRODUCT_OF_PROBS}


def share_memory(cnp.ndarray a not None, cnp.ndarray b not None):
    """Whether the memory ranges of two arrays overlap."""
    return may_overlap(a, b)


def openmp():
    """Whether this build can run on several threads."""
    return has_openmp()


cdef int type_computed_in(int element) noexcept:
    return cnp.NPY_FLOAT if element in (FLOAT16, BFLOAT16, FLOAT32) else cnp.NPY_DOUBLE


cdef bint is_target(targets):
    """Whether `targets` is an ndarray, a tuple of two, or NONE_NEEDED."""
    if type(targets) is tuple:
        return len(targets) == 2 and cnp.PyArray_CheckExact(targets[0]) and cnp.PyArray_CheckExact(targets[1])
    return targets is none_needed or cnp.PyArray_CheckExact(targets)


cdef bint describe_sparse(Job* job, cnp.ndarray x, cnp.ndarray indices, cnp.ndarray probs, int axis, int computed_in):
    cdef int last = cnp.PyArray_NDIM(x) - 1
    if cnp.PyArray_NDIM(indices) != last + 1 or not same_rows(x, axis, indices, last):
        return False
    if not same_shape(indices, probs):
        return False
    read_layout(&job.targets, indices, last, cnp.NPY_INT64)
    read_layout(&job.probs, probs, last, computed_in)
    job.kind = SPARSE
    job.n_entries = cnp.PyArray_DIM(indices, last)
    if not (job.targets.typed and job.probs.typed):
        return False
    return cnp.PyArray_SIZE(indices) == 0 or (job.targets.packed and job.probs.packed)


cdef bint describe_targets(Job* job, cnp.ndarray x, targets, int axis, int computed_in):
    """Fill in the targets; False if they do not belong to the logits. Labels are still to be checked."""
    if targets is none_needed:
        job.kind = NO_TARGET
        job.n_entries = 1
        return True
    if type(targets) is tuple:
        return not job.has_ignored and describe_sparse(job, x, targets[0], targets[1], axis, computed_in)
    if same_rows(x, axis, targets, -1):
        read_layout(&job.targets, targets, -1, computed_in)
        return is_label(job.targets.element)
    job.kind = DISTRIBUTIONS
    job.n_entries = 0
    if job.has_ignored or not same_shape(x, targets):
        return False
    read_layout(&job.targets, targets, axis, computed_in)
    return job.targets.element != NO_ELEMENT


cdef inline bint is_normal(double x, bint in_double) noexcept nogil:
    """Whether x is in the range of the normal numbers that are computed in, or 0."""
    return x == 0 or (DBL_MIN if in_double else FLT_MIN) <= x <= (DBL_MAX if in_double else FLT_MAX)


cdef inline bint settle_options(Job* job, double smoothing) noexcept nogil:
    """Fill in what follows from the options that were described; False if temperature or cap are out of range."""
    if not (is_normal(job.transform.temperature, job.in_double) and is_normal(job.transform.cap, job.in_double)):
        return False
    job.transforms = job.transform.temperature != 1 or job.transform.cap > 0 or job.has_allowed
    job.has_slope = job.transform.cap > 0 and (job.result == PRODUCT or (job.has_grad and job.result == GRADIENT))
    job.may_leave_range = job.transform.temperature < 1 and job.transform.cap == 0
    # Smoothing needs two sums of the row only, also with weights of classes if the target is a label. Else, or with a
    # mask, the smoothed target differs from class to class, so it is built in full: see build_target.
    job.formula.weighs = (
        job.class_weight != NULL and smoothing != 0 and job.kind == LABELS and not job.has_allowed)
    job.builds_target = not job.formula.weighs and (
        (job.class_weight != NULL and (smoothing != 0 or job.kind == DISTRIBUTIONS))
        or (job.has_allowed and smoothing != 0))
    if job.builds_target:
        job.built_smoothing = smoothing
    else:
        job.formula.smoothing = smoothing
    return True


cdef bint describe_options(Job* job, cnp.ndarray x, options, int axis, int computed_in):
    """Fill in all options but ignore_index; False if one cannot be used as it is."""
    cdef cnp.ndarray sample_weight = options.sample_weight, class_weight = options.weight, allowed = options.where
    cdef double smoothing = options.label_smoothing
    job.has_sample_weight = sample_weight is not None
    if job.has_sample_weight:
        if not same_rows(x, axis, sample_weight, -1):
            return False
        read_layout(&job.sample_weight, sample_weight, -1, cnp.NPY_DOUBLE)
        if job.sample_weight.element == NO_ELEMENT:
            return False
    if class_weight is not None:
        if cnp.PyArray_NDIM(class_weight) != 1 or cnp.PyArray_DIM(class_weight, 0) != job.n_classes:
            return False
        if cnp.PyArray_TYPE(class_weight) != computed_in or not cnp.PyArray_ISCARRAY_RO(class_weight):
            return False
        job.class_weight = cnp.PyArray_DATA(class_weight)
        if options.weight_unit is not None:
            job.class_unit = options.weight_unit
    job.has_allowed = allowed is not None
    if job.has_allowed:
        if cnp.PyArray_TYPE(allowed) != cnp.NPY_BOOL or not same_shape(x, allowed):
            return False
        read_layout(&job.allowed, allowed, axis, computed_in)
    job.transform.temperature = job.temperature = options.temperature
    if options.softcap is not None:
        job.transform.cap = options.softcap
    if not settle_options(job, smoothing):
        return False
    job.formula.z_loss = options.z_loss
    job.hess_factor = options.hess_factor
    if options.normalizer is not None:
        job.has_normalizer = True
        job.normalizer = options.normalizer
    return True


cdef bint overlaps_input(cnp.ndarray g, targets, options):
    """Whether a gradient may overlap an input other than the logits."""
    if type(targets) is tuple:
        if may_overlap(g, targets[0]) or may_overlap(g, targets[1]):
            return True
    elif targets is not none_needed and may_overlap(g, targets):
        return True
    if options is not None:
        for other in (options.sample_weight, options.weight, options.where):
            if other is not None and may_overlap(g, other):
                return True
    return False


cdef bint describe_result(Job* job, Layout* layout, grad, cnp.ndarray x, int axis, int computed_in):
    """Fill in where the gradient, or another result, goes; False if it cannot be written there."""
    if not cnp.PyArray_CheckExact(grad) or not cnp.PyArray_ISWRITEABLE(grad) or not same_shape(x, grad):
        return False
    read_layout(layout, grad, axis, computed_in)
    return is_floating(layout.element) and (job.n_rows == 0 or not may_overlap_itself(grad))


cdef bint describe_vectors(Job* job, vectors, cnp.ndarray x, int axis, int computed_in):
    """Fill in the vectors; False if they do not belong to the logits."""
    if not cnp.PyArray_CheckExact(vectors) or not same_shape(x, vectors):
        return False
    if job.result == PRODUCT:
        read_layout(&job.vectors, vectors, axis, computed_in)
        return job.vectors.element != NO_ELEMENT
    # -(T p - v), with the sum T of the vector v: the gradient of a target v, with its sign changed.
    job.mean = job.has_normalizer = True
    job.normalizer = -1
    job.kind = DISTRIBUTIONS
    job.n_entries = 0
    job.masks_target = job.builds_target = job.has_allowed
    read_layout(&job.targets, vectors, axis, computed_in)
    return job.targets.element != NO_ELEMENT


cdef bint is_double(grad):
    return cnp.PyArray_CheckExact(grad) and element_type(grad) == FLOAT64


cdef bint describe_losses(Job* job, cnp.ndarray losses):
    """Fill in where the losses of the rows go."""
    if losses is None:
        return True
    if cnp.PyArray_SIZE(losses) != job.n_rows or not cnp.PyArray_ISCARRAY(losses):
        return False
    if cnp.PyArray_TYPE(losses) == cnp.NPY_FLOAT:
        job.losses32 = <float*> cnp.PyArray_DATA(losses)
        return True
    job.losses64 = <double*> cnp.PyArray_DATA(losses)
    return cnp.PyArray_TYPE(losses) == cnp.NPY_DOUBLE


cdef enum:
    N_DIAGNOSTICS = 8
    NUMBERS = -1         # of the type computed in

# The types of log_prob, lse, entropy, confidence, argmax, rank, correct and counts: see Diagnostics in job.hpp.
cdef int[N_DIAGNOSTICS] DIAGNOSTICS = [
    NUMBERS, NUMBERS, NUMBERS, NUMBERS, cnp.NPY_INT64, cnp.NPY_INT64, cnp.NPY_BOOL, cnp.NPY_DOUBLE]


cdef inline int type_of_diagnostic(int i, int computed_in) noexcept:
    return computed_in if DIAGNOSTICS[i] == NUMBERS else DIAGNOSTICS[i]


def diagnostics_of(logits, axis):
    """New arrays for what `evaluate` tells of each row, in the order of DIAGNOSTICS.

    None unless `logits` is an ndarray of a dtype that kernels take, and `axis` an int that is one of its axes.
    """
    cdef cnp.npy_intp[MAX_AXES] shape
    cdef int n_axes = cnp.PyArray_NDIM(logits) if cnp.PyArray_CheckExact(logits) else 0, class_axis, i, element
    cdef int computed_in
    if type(axis) is not int or not -n_axes <= axis < n_axes:
        return None
    element = element_type(logits)
    if element == NO_ELEMENT or element == LONG_DOUBLE:
        return None
    class_axis = axis + n_axes if axis < 0 else axis
    for i in range(n_axes - 1):
        shape[i] = cnp.PyArray_DIM(logits, i if i < class_axis else i + 1)
    computed_in = type_computed_in(element)
    return tuple([
        cnp.PyArray_EMPTY(n_axes - 1, shape, type_of_diagnostic(i, computed_in), False)
        for i in range(N_DIAGNOSTICS)])


cdef bint describe_diagnostics(Job* job, diagnostics, int computed_in):
    """Fill in where the diagnostics go: the arrays of `diagnostics_of`. Not with a gradient."""
    cdef cnp.ndarray array
    cdef void* data[N_DIAGNOSTICS]
    cdef int i
    if diagnostics is None:
        return True
    if job.has_grad or (job.kind != LABELS and job.kind != NO_TARGET):
        return False
    for i in range(N_DIAGNOSTICS):
        array = diagnostics[i]
        if cnp.PyArray_TYPE(array) != type_of_diagnostic(i, computed_in):
            return False
        if cnp.PyArray_SIZE(array) != job.n_rows or not cnp.PyArray_ISCARRAY(array):
            return False
        data[i] = cnp.PyArray_DATA(array)
    job.diagnostics.log_prob, job.diagnostics.lse, job.diagnostics.entropy = data[0], data[1], data[2]
    job.diagnostics.confidence = data[3]
    job.diagnostics.argmax, job.diagnostics.rank = <int64_t*> data[4], <int64_t*> data[5]
    job.diagnostics.correct, job.diagnostics.counts = <unsigned char*> data[6], <double*> data[7]
    return True


@cython.auto_pickle(False)
cdef class Kernels:
    """The kernels of one level, from the capsule that its module offers as `table`."""
    cdef const KernelTable* table

    def __cinit__(self, capsule):
        self.table = <const KernelTable*> PyCapsule_GetPointer(capsule, "softxent.kernels.table")
        if self.table.version != TABLE_VERSION or self.table.size < sizeof(KernelTable):
            raise ImportError(
                f"kernels of version {self.table.version} in an installation that needs version {TABLE_VERSION}: "
                "install softxent again")

    def run(
        self, logits, targets, int axis, losses, grad, bint mean, int n_threads, options=None, diagnostics=None,
        int result=GRADIENT, vectors=None, hess=None
    ):
        """Returns the sum or mean of the losses as a float, or a status. Fills `losses` and `grad`, each if not None.

        The type computed in is float32 for float16, bfloat16 and float32 logits, and float64 for all others, and for a
        `grad` of float64 if there are no targets.

        - logits: any shape, with the classes along `axis`.
        - targets: class labels, without that axis; distributions, with it; or a tuple of indices (int64) and probs (of
          the type computed in), whose last axis is contiguous. Or NONE_NEEDED, for a result that needs none.
        - losses: without the class axis, C-contiguous, float32 or float64.
        - grad: of the shape of the logits, any floating dtype.
        - options: scalars in their ranges; sample_weight of any real dtype; weight C-contiguous, of the type computed
          in, divided by weight_unit unless that is None; where of the shape of the logits.
        - diagnostics: see describe_diagnostics.
        - result: one of RESULTS: what `grad` gets, but logsumexp goes to `losses`.
        - vectors: as distributions. Without targets, those of a gradient are the negative product of the log-softmax's
          Jacobian with them.
        - hess: as grad, for the diagonal of a Hessian.
        """
        cdef Job job
        cdef void* memory = NULL
        cdef size_t size
        cdef double loss
        cdef int computed_in, element
        cdef bint in_place, needs_vectors
        if not cnp.PyArray_CheckExact(logits) or not is_target(targets):
            return NOT_AS_IT_IS
        if axis < 0:
            axis += cnp.PyArray_NDIM(logits)
        if not 0 <= axis < cnp.PyArray_NDIM(logits) or cnp.PyArray_DIM(logits, axis) == 0:
            return NOT_AS_IT_IS
        job.n_classes = cnp.PyArray_DIM(logits, axis)
        job.n_rows = cnp.PyArray_SIZE(logits) // job.n_classes
        element = element_type(logits)
        computed_in = type_computed_in(element)
        if targets is none_needed and grad is not None and is_double(grad):
            computed_in = cnp.NPY_DOUBLE
        job.in_double = computed_in == cnp.NPY_DOUBLE
        read_layout(&job.logits, logits, axis, computed_in)
        job.has_grad = grad is not None
        job.result = <Result> result
        if result == PRODUCT_OF_PROBS:
            job.result = PRODUCT
            job.has_probs = True
        job.keeps_logits = diagnostics is not None or result == LOG_SOFTMAX
        job.mean = mean
        if options is not None and options.ignore_index is not None:
            job.has_ignored = True
            job.ignored = options.ignore_index
        if element == NO_ELEMENT or not describe_targets(&job, logits, targets, axis, computed_in):
            return NOT_AS_IT_IS
        if options is not None and not describe_options(&job, logits, options, axis, computed_in):
            return NOT_AS_IT_IS
        if job.has_grad and not describe_result(&job, &job.grad, grad, logits, axis, computed_in):
            return NOT_AS_IT_IS
        if hess is not None and not describe_result(&job, &job.hess, hess, logits, axis, computed_in):
            return NOT_AS_IT_IS
        if job.has_probs:
            job.transforms = job.may_leave_range = False
            job.transform.temperature = 1
        # Then the caller has passed None for an array that is needed.
        needs_vectors = job.result == PRODUCT or (
            job.result == GRADIENT and job.kind == NO_TARGET and diagnostics is None)
        if needs_vectors != (vectors is not None) or (job.result == HESSIAN) != (hess is not None):
            return NOT_AS_IT_IS
        if vectors is not None and not describe_vectors(&job, vectors, logits, axis, computed_in):
            return NOT_AS_IT_IS
        if not describe_losses(&job, losses) or not describe_diagnostics(&job, diagnostics, computed_in):
            return NOT_AS_IT_IS
        if job.kind != DISTRIBUTIONS and job.kind != NO_TARGET and not self.table.labels_are_good(&job):
            return NOT_AS_IT_IS
        if job.n_rows == 0:
            return 0.0
        in_place = job.has_grad and same_elements(grad, logits)
        if vectors is not None:
            job.grad_is_input = same_elements(grad, vectors)
            if not job.grad_is_input and may_overlap(grad, vectors):
                return OVERLAPS
        if hess is not None and (
            may_overlap(grad, hess) or overlaps_input(hess, targets, options)
            or (may_overlap(hess, logits) and not same_elements(hess, logits))
        ):
            return OVERLAPS
        if job.has_grad and ((not in_place and may_overlap(grad, logits)) or overlaps_input(grad, targets, options)):
            return OVERLAPS
        make_plan(&job, in_place, n_threads)
        size = scratch_bytes(&job)
        if size > 0:
            memory = PyMem_RawMalloc(size) if size < SIZE_MAX else NULL
            if memory == NULL:
                raise MemoryError(f"no memory for rows of {job.n_classes} classes")
        with nogil:
            loss = self.table.run(&job, aligned(memory))
        PyMem_RawFree(memory)
        return NOT_AS_IT_IS if job.needs_class_unit else loss

    def offer(self, str level not None):
        """The capsule of the C interface, whose functions use these kernels from now on."""
        global c_kernels, c_level
        c_kernels, c_level = self.table, level.encode()
        c_api.level = c_level
        return PyCapsule_New(&c_api, "softxent._C_API", NULL)

    def exp_of(self, cnp.ndarray x, double m, cnp.ndarray out):
        """Writes the exponentials of x <= m, in the unit of a row with the maximum m; returns that of m itself.

        For the tests of the bound that kernels/math states. Contiguous arrays of one float dtype and size.
        """
        return self.table.exp_of(
            cnp.PyArray_DATA(x), m, cnp.PyArray_DATA(out), cnp.PyArray_SIZE(x),
            cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE)

    def log1p_of(self, cnp.ndarray u, cnp.ndarray out):
        """log(1 + u) of u >= 0, for the tests of the bound that kernels/math states. Contiguous float64 of one size."""
        self.table.log1p_of(<double*> cnp.PyArray_DATA(u), <double*> cnp.PyArray_DATA(out), cnp.PyArray_SIZE(u))
