# What the kernels see of a NumPy array: where each row starts, how its elements are read, and what it overlaps.

cdef enum:
    MAX_AXES = 64               # NumPy's own limit
    PIECE = 64                  # numbers that are converted at once


cdef struct Rows:
    # Row i of an array: `data` plus the offset of i in a C-order walk over all axes but that of the classes,
    # neighbouring axes merged wherever one stride serves both; there is at least one, the last, along which rows are
    # `step` apart.
    char* data
    int n_axes
    Py_ssize_t[MAX_AXES] shape
    Py_ssize_t[MAX_AXES] strides
    Py_ssize_t class_stride
    Py_ssize_t length              # of the last axis
    Py_ssize_t step
    bint packed                    # elements are aligned, in native byte order, and those of a row lie side by side
    bint typed                     # elements are aligned, in native byte order, and of the type computed in
    bint direct                    # packed and typed: the kernel may load and store rows as they are
    bint halves                    # packed, and element.read_row and write_row convert them to and from that type
    Element element


cdef char kind_of(cnp.ndarray array):
    """The dtype's kind; bfloat16 is known by the name that its users gave it, not by NumPy."""
    if cnp.PyTypeNum_ISUSERDEF(cnp.PyArray_TYPE(array)):
        return BFLOAT16 if array.dtype.type.__name__ == "bfloat16" else 0
    return array.descr.kind


cdef int read_layout(Rows* rows, cnp.ndarray array, int class_axis, int typenum) except -1:
    """Fill `rows` from an array whose classes are along `class_axis`, -1 if it has none; `typenum` is computed in."""
    cdef int axis, last = -1
    cdef Py_ssize_t length, stride, n_classes = 1
    cdef bint native = cnp.PyArray_ISNOTSWAPPED(array), plain = native and cnp.PyArray_ISALIGNED(array)
    rows.data = cnp.PyArray_BYTES(array)
    rows.element = element_of(kind_of(array), cnp.PyArray_ITEMSIZE(array), not native)
    rows.class_stride = 0
    for axis in range(cnp.PyArray_NDIM(array)):
        length = cnp.PyArray_DIM(array, axis)
        stride = cnp.PyArray_STRIDE(array, axis)
        if axis == class_axis:
            n_classes = length
            rows.class_stride = stride
        elif length == 1:
            continue
        elif last >= 0 and rows.strides[last] == stride * length:
            rows.shape[last] *= length
            rows.strides[last] = stride
        else:
            last += 1
            rows.shape[last] = length
            rows.strides[last] = stride
    if last < 0:
        last = 0
        rows.shape[0] = 1
        rows.strides[0] = 0
    rows.n_axes = last + 1
    rows.length = rows.shape[last]
    rows.step = rows.strides[last]
    rows.packed = plain and (n_classes <= 1 or rows.class_stride == cnp.PyArray_ITEMSIZE(array))
    rows.typed = plain and cnp.PyArray_TYPE(array) == typenum
    rows.direct = rows.packed and rows.typed
    rows.halves = rows.packed and rows.element.read_row != NULL and typenum == cnp.NPY_FLOAT
    return 0


cdef inline char* row(const Rows* rows, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t offset = 0
    cdef int axis = rows.n_axes - 1
    while axis > 0:
        offset += i % rows.shape[axis] * rows.strides[axis]
        i //= rows.shape[axis]
        axis -= 1
    return rows.data + offset + i * rows.strides[0]


cdef inline Py_ssize_t run_from(const Rows* rows, Py_ssize_t i, Py_ssize_t count) noexcept nogil:
    """How many of `count` rows from i on are rows.step apart."""
    return count if rows.n_axes == 1 else min(count, rows.length - i % rows.length)


cdef inline bint read_labels(
    const Rows* labels, Py_ssize_t i, Py_ssize_t count, const LabelRange* range, int64_t* to
) noexcept nogil:
    """LabelsReader in elements.hpp, for `count` labels from i on."""
    cdef Py_ssize_t done = 0, run
    cdef bint good = True
    while done < count:
        run = run_from(labels, i + done, count - done)
        good &= labels.element.read_labels(
            row(labels, i + done), labels.step, run, range[0], to + done if to != NULL else NULL)
        done += run
    return good


cdef inline void read_numbers(const Rows* numbers, Py_ssize_t i, Py_ssize_t count, double* to) noexcept nogil:
    """`count` numbers of an array without classes, from i on."""
    cdef Py_ssize_t done = 0, run
    while done < count:
        run = run_from(numbers, i + done, count - done)
        numbers.element.read(row(numbers, i + done), numbers.step, run, to + done)
        done += run


cdef void read_row(storage* to, const char* source, const Rows* rows, Py_ssize_t n) noexcept nogil:
    cdef double[PIECE] piece
    cdef Py_ssize_t start = 0, count, c
    if rows.direct:
        if to != <storage*> source:
            memcpy(to, source, n * sizeof(storage))
        return
    if storage is float and rows.halves:
        rows.element.read_row(source, to, n)
        return
    while start < n:
        count = min(PIECE, n - start)
        rows.element.read(source + start * rows.class_stride, rows.class_stride, count, piece)
        for c in range(count):
            to[start + c] = <storage> piece[c]
        start += count


cdef void write_row(char* to, const storage* source, const Rows* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    if storage is float and rows.halves:
        rows.element.write_row(to, source, n)
        return
    for c in range(n):
        rows.element.write(to + c * rows.class_stride, source[c])


cdef void zero_row(const Rows* rows, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    cdef char* start = row(rows, i)
    cdef Py_ssize_t c
    if rows.packed and n > 1:
        memset(start, 0, n * rows.class_stride)
        return
    for c in range(n):
        rows.element.write(start + c * rows.class_stride, 0)


cdef bint same_rows(cnp.ndarray a, int a_axis, cnp.ndarray b, int b_axis) noexcept:
    """Whether a but for one axis has the shape of b but for one axis; -1 for no axis to leave out."""
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
