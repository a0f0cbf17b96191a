# NumPy arrays as kernels see them: the Layout of an array, and whether arrays share memory.


cdef int element_type(cnp.ndarray array):
    """The ElementType of the array's dtype. NumPy has no bfloat16 of its own, so its name tells."""
    cdef char kind
    cdef int size = cnp.PyArray_ITEMSIZE(array)
    if cnp.PyTypeNum_ISUSERDEF(cnp.PyArray_TYPE(array)):
        return BFLOAT16 if array.dtype.type.__name__ == "bfloat16" else NO_ELEMENT
    kind = array.descr.kind
    if kind == b"f":
        return (FLOAT32 if size == 4 else FLOAT64 if size == 8 else FLOAT16 if size == 2
                else LONG_DOUBLE if size == sizeof(long double) else NO_ELEMENT)
    if kind == b"i":
        return INT64 if size == 8 else INT32 if size == 4 else INT16 if size == 2 else INT8
    if kind == b"u":
        return UINT64 if size == 8 else UINT32 if size == 4 else UINT16 if size == 2 else UINT8
    return BOOLEAN if kind == b"b" else NO_ELEMENT


cdef inline void classify(
    Layout* layout, Py_ssize_t n_classes, Py_ssize_t itemsize, bint plain, bint has_type_computed_in, bint in_float
) noexcept nogil:
    """Fill in what follows from shape, strides and element of a layout. `plain`: aligned, and in native byte order."""
    layout.length = layout.shape[layout.n_axes - 1]
    layout.step = layout.strides[layout.n_axes - 1]
    layout.packed = plain and (n_classes <= 1 or layout.class_stride == itemsize)
    layout.stacked = plain and layout.step == itemsize
    layout.typed = plain and has_type_computed_in
    layout.direct = layout.packed and layout.typed
    layout.loadable = layout.direct or (layout.packed and in_float and layout.element in (FLOAT16, BFLOAT16))


cdef int read_layout(Layout* layout, cnp.ndarray array, int class_axis, int computed_in) except -1:
    """Fill in the layout of an array whose classes are along `class_axis`; -1 if it has no class axis."""
    cdef int axis, last = -1
    cdef Py_ssize_t length, stride, n_classes = 1
    cdef bint native = cnp.PyArray_ISNOTSWAPPED(array), plain = native and cnp.PyArray_ISALIGNED(array)
    layout.data = cnp.PyArray_BYTES(array)
    layout.element = element_type(array)
    layout.swapped = not native
    layout.class_stride = 0
    for axis in range(cnp.PyArray_NDIM(array)):
        length = cnp.PyArray_DIM(array, axis)
        stride = cnp.PyArray_STRIDE(array, axis)
        if axis == class_axis:
            n_classes = length
            layout.class_stride = stride
        elif length == 1:
            continue
        elif last >= 0 and layout.strides[last] == stride * length:
            layout.shape[last] *= length
            layout.strides[last] = stride
        else:
            last += 1
            layout.shape[last] = length
            layout.strides[last] = stride
    if last < 0:
        last = 0
        layout.shape[0] = 1
        layout.strides[0] = 0
    layout.n_axes = last + 1
    classify(
        layout, n_classes, cnp.PyArray_ITEMSIZE(array), plain, cnp.PyArray_TYPE(array) == computed_in,
        computed_in == cnp.NPY_FLOAT)
    return 0


cdef bint same_rows(cnp.ndarray a, int a_axis, cnp.ndarray b, int b_axis) noexcept:
    """Whether a without a_axis has the shape of b without b_axis; -1 leaves no axis out."""
    cdef int i = 0, k = 0
    while True:
        i += i == a_axis
        k += k == b_axis
        if i >= cnp.PyArray_NDIM(a) or k >= cnp.PyArray_NDIM(b):
            return i >= cnp.PyArray_NDIM(a) and k >= cnp.PyArray_NDIM(b)
        if cnp.PyArray_DIM(a, i) != cnp.PyArray_DIM(b, k):
            return False
        i += 1
        k += 1


cdef bint same_shape(cnp.ndarray a, cnp.ndarray b) noexcept:
    return same_rows(a, -1, b, -1)


cdef struct Range:
    # A range of memory: from the first byte to that after the last.
    size_t start, stop


cdef inline void spread(Range* extent, Py_ssize_t n, Py_ssize_t stride) noexcept nogil:
    """Extend the range of an object to n > 0 of them that are `stride` bytes apart."""
    if stride < 0:
        extent.start += (n - 1) * stride
    else:
        extent.stop += (n - 1) * stride


cdef inline bint meet(const Range* a, const Range* b) noexcept nogil:
    return a.start < b.stop and b.start < a.stop


cdef Range range_of(cnp.ndarray array) noexcept:
    """The memory in which the elements of an array lie. There is at least one."""
    cdef Range extent
    cdef int axis
    extent.start = <size_t> cnp.PyArray_DATA(array)
    extent.stop = extent.start + cnp.PyArray_ITEMSIZE(array)
    for axis in range(cnp.PyArray_NDIM(array)):
        spread(&extent, cnp.PyArray_DIM(array, axis), cnp.PyArray_STRIDE(array, axis))
    return extent


cdef bint may_overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef Range of_a, of_b
    if cnp.PyArray_SIZE(a) == 0 or cnp.PyArray_SIZE(b) == 0:
        return False
    of_a, of_b = range_of(a), range_of(b)
    return meet(&of_a, &of_b)


cpdef bint may_overlap_itself(cnp.ndarray array):
    """Whether two elements may share memory. False if each axis steps over the span of those with smaller steps."""
    cdef Py_ssize_t span, step, other_step
    cdef int axis, other
    for axis in range(cnp.PyArray_NDIM(array)):
        if cnp.PyArray_DIM(array, axis) == 1:
            continue
        step = llabs(cnp.PyArray_STRIDE(array, axis))
        span = cnp.PyArray_ITEMSIZE(array)
        for other in range(cnp.PyArray_NDIM(array)):
            other_step = llabs(cnp.PyArray_STRIDE(array, other))
            if other_step < step or (other_step == step and other < axis):
                span += (cnp.PyArray_DIM(array, other) - 1) * other_step
        if span > step:
            return True
    return False


cdef bint same_elements(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two arrays of one shape have the same elements in the same places."""
    cdef int axis
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b) or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, axis) > 1 and cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_STRIDE(b, axis):
            return False
    return True
