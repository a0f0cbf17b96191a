# What the kernels see of a NumPy array: where each row starts, how its elements are read, and what it overlaps.

cdef enum:
    MAX_AXES = 64               # NumPy's own limit


cdef struct Rows:
    # Row i of an array whose class axis is last: `data` plus the offset of i in a C-order walk over the leading axes,
    # neighbouring axes merged wherever one stride serves both.
    char* data
    int n_axes
    Py_ssize_t[MAX_AXES] shape
    Py_ssize_t[MAX_AXES] strides
    Py_ssize_t class_stride
    bint packed                    # the elements of a row lie side by side, aligned and in native byte order
    bint direct                    # and are of the type computed in: the kernel may load and store them as they are
    Element element


cdef char kind_of(cnp.ndarray array):
    """The dtype's kind; bfloat16 is known by the name that its users gave it, not by NumPy."""
    if cnp.PyTypeNum_ISUSERDEF(cnp.PyArray_TYPE(array)):
        return BFLOAT16 if array.dtype.type.__name__ == "bfloat16" else 0
    return array.descr.kind


cdef int read_layout(Rows* rows, cnp.ndarray array, bint has_classes, int typenum) except -1:
    """Fill `rows` from an array whose last axis, if it has classes, is theirs; direct means elements of `typenum`."""
    cdef int ndim = cnp.PyArray_NDIM(array) - has_classes
    cdef int axis, last = -1
    cdef Py_ssize_t length, stride
    cdef bint native = cnp.PyArray_ISNOTSWAPPED(array)
    rows.data = cnp.PyArray_BYTES(array)
    rows.element = element_of(kind_of(array), cnp.PyArray_ITEMSIZE(array), not native)
    rows.class_stride = cnp.PyArray_STRIDE(array, ndim) if has_classes else 0
    for axis in range(ndim):
        length = cnp.PyArray_DIM(array, axis)
        stride = cnp.PyArray_STRIDE(array, axis)
        if length == 1:
            continue
        if last >= 0 and rows.strides[last] == stride * length:
            rows.shape[last] *= length
            rows.strides[last] = stride
        else:
            last += 1
            rows.shape[last] = length
            rows.strides[last] = stride
    rows.n_axes = last + 1
    rows.packed = (
        native and cnp.PyArray_ISALIGNED(array)
        and (not has_classes or cnp.PyArray_DIM(array, ndim) == 1 or rows.class_stride == cnp.PyArray_ITEMSIZE(array)))
    rows.direct = rows.packed and cnp.PyArray_TYPE(array) == typenum
    return 0


cdef inline char* row(const Rows* rows, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t offset = 0
    cdef int axis = rows.n_axes - 1
    while axis > 0:
        offset += i % rows.shape[axis] * rows.strides[axis]
        i //= rows.shape[axis]
        axis -= 1
    return rows.data + offset + (i * rows.strides[0] if axis == 0 else 0)


cdef bint labels_are_classes(const Rows* labels, Py_ssize_t n_rows, Py_ssize_t n_classes) noexcept nogil:
    cdef Py_ssize_t i = 0, length = n_rows, stride = 0
    if labels.n_axes > 0:
        length = labels.shape[labels.n_axes - 1]
        stride = labels.strides[labels.n_axes - 1]
    while i < n_rows:
        if not labels.element.are_labels(row(labels, i), stride, length, n_classes):
            return False
        i += length
    return True


cdef bint same_shape(cnp.ndarray a, cnp.ndarray b, int ndim) noexcept:
    """Whether the first `ndim` axes agree."""
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


cpdef bint may_overlap_itself(cnp.ndarray array):
    """Whether two elements may share memory: False if each axis steps over all that the axes of smaller steps span."""
    cdef Py_ssize_t span, step, other_step
    cdef int axis, other
    for axis in range(cnp.PyArray_NDIM(array)):
        if cnp.PyArray_DIM(array, axis) == 1:
            continue
        step = abs(cnp.PyArray_STRIDE(array, axis))
        span = cnp.PyArray_ITEMSIZE(array)
        for other in range(cnp.PyArray_NDIM(array)):
            other_step = abs(cnp.PyArray_STRIDE(array, other))
            if other_step < step or (other_step == step and other < axis):
                span += (cnp.PyArray_DIM(array, other) - 1) * other_step
        if span > step:
            return True
    return False


cdef bint same_elements(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Two arrays of one shape whose elements lie in the same places."""
    cdef int axis
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b) or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, axis) > 1 and cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_STRIDE(b, axis):
            return False
    return True
