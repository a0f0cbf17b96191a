# The C interface: from the struct of a caller in C to a Job. include/softxent.h says what its fields mean.

from softxent cimport *

# The kernels of the level in use, and its name.
cdef const KernelTable* c_kernels = NULL
cdef bytes c_level = b""


cdef bint overlaps_itself(const softxent_array* array, const softxent_call* call, Py_ssize_t itemsize) noexcept nogil:
    cdef Py_ssize_t n = call.n_rows, step = llabs(array.row_stride)
    cdef Py_ssize_t m = call.n_classes, inner = llabs(array.class_stride)
    if inner > step:
        n, step, m, inner = m, inner, n, step
    return (m > 1 and inner < itemsize) or (n > 1 and step < (m - 1 if m > 1 else 0) * inner + itemsize)


cdef inline Range range_in(const softxent_array* array, const softxent_call* call, Py_ssize_t itemsize) noexcept nogil:
    cdef Range found
    found.start = <size_t> array.data
    found.stop = found.start + itemsize
    spread(&found, call.n_rows, array.row_stride)
    spread(&found, call.n_classes, array.class_stride)
    return found


cdef inline bint same_array(const softxent_array* a, const softxent_array* b, const softxent_call* call) noexcept nogil:
    """Whether two arrays have the same elements in the same places."""
    return (
        a.data == b.data and (call.n_rows == 1 or a.row_stride == b.row_stride)
        and (call.n_classes == 1 or a.class_stride == b.class_stride))


cdef Range side_by_side(const void* data, Py_ssize_t n, Py_ssize_t itemsize) noexcept nogil:
    cdef Range found
    found.start = <size_t> data
    found.stop = found.start + n * itemsize
    return found


cdef bint meets_input(Range written, const softxent_call* call, Py_ssize_t itemsize, bint is_logits) noexcept nogil:
    """Whether memory that is written overlaps an input. `is_logits`: that it is exactly the logits is fine."""
    cdef Range read = range_in(&call.logits, call, itemsize)
    if not is_logits and meet(&written, &read):
        return True
    if call.distributions.data != NULL:
        read = range_in(&call.distributions, call, itemsize)
    elif call.labels != NULL:
        read = side_by_side(call.labels, call.n_rows, sizeof(int64_t))
    else:
        return False
    return meet(&written, &read)


cdef bint is_good_result(const softxent_array* array, const softxent_call* call, Py_ssize_t itemsize) noexcept nogil:
    """Whether a result can be written there."""
    return not overlaps_itself(array, call, itemsize) and not meets_input(
        range_in(array, call, itemsize), call, itemsize, same_array(array, &call.logits, call))


cdef bint are_apart(const softxent_call* call, Py_ssize_t itemsize) noexcept nogil:
    """Whether all results overlap neither each other nor an input. There is at least one row."""
    cdef Range of_grad = Range(0, 0), of_hess = Range(0, 0), of_losses
    cdef bint has_grad = call.grad.data != NULL, has_hess = call.hess.data != NULL
    if has_grad:
        of_grad = range_in(&call.grad, call, itemsize)
        if not is_good_result(&call.grad, call, itemsize):
            return False
    if has_hess:
        of_hess = range_in(&call.hess, call, itemsize)
        if not is_good_result(&call.hess, call, itemsize) or meet(&of_grad, &of_hess):
            return False
    if call.losses == NULL:
        return True
    of_losses = side_by_side(call.losses, call.n_rows, itemsize)
    return not (
        (has_grad and meet(&of_grad, &of_losses)) or (has_hess and meet(&of_hess, &of_losses))
        or meets_input(of_losses, call, itemsize, False))


cdef inline void place_rows(
    Layout* layout, const void* data, int element, Py_ssize_t itemsize, Py_ssize_t n_rows, Py_ssize_t row_stride,
    Py_ssize_t n_classes, Py_ssize_t class_stride, bint in_float
) noexcept nogil:
    """Fill in the layout of an array whose elements are of the type computed in, or labels."""
    cdef size_t places = <size_t> data | <size_t> row_stride | <size_t> class_stride
    layout.data = <char*> data
    layout.element = element
    layout.class_stride = class_stride
    layout.shape[0] = n_rows
    layout.strides[0] = row_stride
    classify(layout, n_classes, itemsize, places % itemsize == 0, element != INT64, in_float)


cdef inline void place_array(
    Layout* layout, const softxent_array* array, const softxent_call* call, int element, Py_ssize_t itemsize
) noexcept nogil:
    place_rows(
        layout, array.data, element, itemsize, call.n_rows, array.row_stride, call.n_classes, array.class_stride,
        element == FLOAT32)


cdef inline bint is_share(double x) noexcept nogil:
    return 0 <= x <= 1


cdef inline bint is_amount(double x) noexcept nogil:
    return 0 <= x <= DBL_MAX


cdef inline bint has_targets(const softxent_call* call) noexcept nogil:
    return call.result <= SOFTXENT_HESSIAN


cdef inline int check_arrays(const softxent_call* call) noexcept nogil:
    """Whether the arrays are those that the result has."""
    cdef bint has_labels = call.labels != NULL, has_distributions = call.distributions.data != NULL
    cdef bint has_grad = call.result != SOFTXENT_LOSS and call.result != SOFTXENT_LOGSUMEXP
    if call.n_rows > 0 and (
        call.logits.data == NULL or (has_targets(call) and not (has_labels or has_distributions))
        or (has_grad and call.grad.data == NULL) or (call.result == SOFTXENT_HESSIAN and call.hess.data == NULL)
        or (call.result == SOFTXENT_LOGSUMEXP and call.losses == NULL)
    ):
        return SOFTXENT_NULL_POINTER
    if (
        (has_labels and has_distributions) or (not has_targets(call) and (has_labels or has_distributions))
        or (not has_grad and call.grad.data != NULL)
        or (call.result != SOFTXENT_HESSIAN and call.hess.data != NULL)
        or (not has_targets(call) and call.result != SOFTXENT_LOGSUMEXP and call.losses != NULL)
    ):
        return SOFTXENT_NOT_NEEDED
    return SOFTXENT_OK


cdef inline int check_call(const softxent_call* call) noexcept nogil:
    """The error code of what can be said before there is a job. Labels and overlaps are not looked at."""
    if call == NULL:
        return SOFTXENT_NULL_POINTER
    # A header with more fields will have another size; then this takes the smaller ones too.
    if call.size != sizeof(softxent_call) or call.n_threads < 1:
        return SOFTXENT_BAD_CALL
    if call.dtype != SOFTXENT_FLOAT32 and call.dtype != SOFTXENT_FLOAT64:
        return SOFTXENT_BAD_CALL
    if not 0 <= call.result <= SOFTXENT_LOGSUMEXP or not 0 <= call.reduction <= SOFTXENT_NORMALIZED:
        return SOFTXENT_BAD_CALL
    if call.n_rows < 0 or call.n_classes < 1:
        return SOFTXENT_BAD_SHAPE
    if not (0 <= call.label_smoothing <= 1 and 0 <= call.z_loss <= DBL_MAX and 0 <= call.normalizer <= DBL_MAX):
        return SOFTXENT_BAD_OPTION
    if not (0 < call.temperature and 0 <= call.softcap) or (call.softcap > 0 and call.result == SOFTXENT_HESSIAN):
        return SOFTXENT_BAD_OPTION
    return check_arrays(call)


cdef inline Result result_of(int result) noexcept nogil:
    if result == SOFTXENT_HESSIAN:
        return HESSIAN
    if result == SOFTXENT_SOFTMAX:
        return SOFTMAX
    if result == SOFTXENT_LOG_SOFTMAX:
        return LOG_SOFTMAX
    return LOGSUMEXP if result == SOFTXENT_LOGSUMEXP else GRADIENT


cdef inline void place_arrays(Job* job, const softxent_call* call, Py_ssize_t itemsize) noexcept nogil:
    """Fill in where inputs and results are, and what kind of targets there is."""
    cdef int element = FLOAT64 if job.in_double else FLOAT32
    place_array(&job.logits, &call.logits, call, element, itemsize)
    job.kind = NO_TARGET
    if call.distributions.data != NULL:
        job.kind = DISTRIBUTIONS
        job.n_entries = 0
        place_array(&job.targets, &call.distributions, call, element, itemsize)
    elif has_targets(call):
        job.kind = LABELS
        place_rows(&job.targets, call.labels, INT64, sizeof(int64_t), call.n_rows, sizeof(int64_t), 1, 0, False)
    job.has_grad = call.grad.data != NULL
    if job.has_grad:
        place_array(&job.grad, &call.grad, call, element, itemsize)
    if job.result == HESSIAN:
        place_array(&job.hess, &call.hess, call, element, itemsize)
    if job.in_double:
        job.losses64 = <double*> call.losses
    else:
        job.losses32 = <float*> call.losses


cdef inline int describe_call(Job* job, const softxent_call* call) noexcept nogil:
    """Fill in a job, and how it is done; an error code if the call is not in order. Labels are not looked at."""
    cdef Py_ssize_t itemsize
    cdef int status = check_call(call)
    if status != SOFTXENT_OK:
        return status
    job.in_double = call.dtype == SOFTXENT_FLOAT64
    itemsize = sizeof(double) if job.in_double else sizeof(float)
    job.n_rows, job.n_classes = call.n_rows, call.n_classes
    job.result = result_of(call.result)
    job.keeps_logits = job.result == LOG_SOFTMAX
    place_arrays(job, call, itemsize)
    if call.has_ignored and job.kind == LABELS:
        job.has_ignored = True
        job.ignored = call.ignored
    if has_targets(call) and call.reduction != SOFTXENT_SUM:
        job.mean = True
        job.has_normalizer = call.reduction == SOFTXENT_NORMALIZED
        job.normalizer = call.normalizer
    job.formula.z_loss = call.z_loss
    job.transform.temperature = job.temperature = call.temperature
    job.transform.cap = call.softcap
    if not settle_options(job, call.label_smoothing):
        return SOFTXENT_BAD_OPTION
    if job.n_rows > 0:
        if not are_apart(call, itemsize):
            return SOFTXENT_OVERLAP
        make_plan(job, job.has_grad and same_array(&call.grad, &call.logits, call), call.n_threads)
    return SOFTXENT_OK


cdef int c_run(const softxent_call* call, void* scratch, size_t size, double* loss) noexcept nogil:
    cdef Job job
    cdef double found = 0
    cdef int status = describe_call(&job, call)
    if status != SOFTXENT_OK:
        return status
    if job.n_rows > 0:
        if job.kind == LABELS and not c_kernels.labels_are_good(&job):
            return SOFTXENT_BAD_LABEL
        if scratch_bytes(&job) > (size if scratch != NULL else 0):
            return SOFTXENT_BAD_SCRATCH
        found = c_kernels.run(&job, aligned(scratch))
    if loss != NULL:
        loss[0] = found if job.kind != NO_TARGET else 0
    return SOFTXENT_OK


cdef Py_ssize_t c_scratch_size(const softxent_call* call) noexcept nogil:
    cdef Job job
    cdef size_t size
    cdef int status = describe_call(&job, call)
    if status != SOFTXENT_OK:
        return -status
    size = scratch_bytes(&job) if job.n_rows > 0 else 0
    return <Py_ssize_t> size if size < SIZE_MAX // 2 else -SOFTXENT_BAD_SHAPE


cdef const char* c_error_text(int code) noexcept nogil:
    if code == SOFTXENT_OK:
        return "no error"
    if code == SOFTXENT_BAD_CALL:
        return "size, dtype, result, reduction or n_threads of the call is none that this softxent knows"
    if code == SOFTXENT_NULL_POINTER:
        return "an array that the result needs is NULL"
    if code == SOFTXENT_NOT_NEEDED:
        return "an array is given that the result does not have"
    if code == SOFTXENT_BAD_SHAPE:
        return "n_rows is negative, n_classes is not positive, or the two are too large"
    if code == SOFTXENT_BAD_LABEL:
        return "a label is neither a class, 0 <= label < n_classes, nor the ignored label"
    if code == SOFTXENT_BAD_OPTION:
        return "an option is out of its range, or softcap is given for a Hessian"
    if code == SOFTXENT_OVERLAP:
        return "a result overlaps an input, the other result, or itself; it may only be exactly the logits"
    if code == SOFTXENT_BAD_SCRATCH:
        return "the scratch is NULL or smaller than softxent_scratch_size says"
    return "not an error code of this softxent"


cdef softxent_api c_api
c_api.version = SOFTXENT_VERSION
c_api.size = sizeof(softxent_api)
c_api.run = c_run
c_api.scratch_size = c_scratch_size
c_api.error_text = c_error_text
