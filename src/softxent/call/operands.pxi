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
    layout.length = layout.shape[last]
    layout.step = layout.strides[last]
    layout.packed = plain and (n_classes <= 1 or layout.class_stride == cnp.PyArray_ITEMSIZE(array))
    layout.stacked = plain and layout.step == cnp.PyArray_ITEMSIZE(array)
    layout.typed = plain and cnp.PyArray_TYPE(array) == computed_in
    layout.direct = layout.packed and layout.typed
    layout.loadable = layout.direct or (
        layout.packed and computed_in == cnp.NPY_FLOAT and layout.element in (FLOAT16, BFLOAT16))
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
    if cnp.PyArray_SIZE(a) == 0 or cnp.PyArray_SIZE(b) == 0:
        return False
    memory_bounds(a, &a_low, &a_high)
    memory_bounds(b, &b_low, &b_high)
    return a_low < b_high and b_low < a_high


cpdef bint may_overlap_itself(cnp.ndarray array):
    """Whether two elements may share memory. False if each axis steps over the span of those with smaller steps."""
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
    """Whether two arrays of one shape have the same elements in the same places."""
    cdef int axis
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b) or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, axis) > 1 and cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_STRIDE(b, axis):
            return False
    return True
