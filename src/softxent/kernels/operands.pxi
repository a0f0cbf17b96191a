# What the kernels see of a NumPy array: where each row starts, and how its elements are read.


cdef struct Rows:
    # Row i of an array whose class axis is last: `data` plus the offset of i in a C-order walk over the leading axes,
    # neighbouring axes merged wherever one stride serves both.
    char* data
    int n_axes
    Py_ssize_t[MAX_AXES] shape
    Py_ssize_t[MAX_AXES] strides
    Py_ssize_t class_stride
    bint direct                    # the kernel may load and store it as it is
    Element element


cdef void read_layout(Rows* rows, cnp.ndarray array, bint has_classes):
    cdef int ndim = cnp.PyArray_NDIM(array) - has_classes
    cdef int axis, last = -1
    cdef Py_ssize_t length, stride
    cdef cnp.dtype descr = array.descr
    rows.data = cnp.PyArray_BYTES(array)
    rows.element = element_of(descr.kind, cnp.PyArray_ITEMSIZE(array), not cnp.PyArray_ISNOTSWAPPED(array))
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
    rows.direct = (
        cnp.PyArray_ISALIGNED(array) and cnp.PyArray_ISNOTSWAPPED(array)
        and (not has_classes or cnp.PyArray_DIM(array, ndim) == 1 or rows.class_stride == cnp.PyArray_ITEMSIZE(array)))


cdef inline char* row(const Rows* rows, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t offset = 0
    cdef int axis = rows.n_axes - 1
    while axis > 0:
        offset += i % rows.shape[axis] * rows.strides[axis]
        i //= rows.shape[axis]
        axis -= 1
    return rows.data + offset + (i * rows.strides[0] if axis == 0 else 0)
