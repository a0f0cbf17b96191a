# What the kernels see of an array: where each row starts, and how its elements are read and written.

cdef enum:
    PIECE = 64                  # numbers that are converted at once


cdef inline char* row_address(const Layout* rows, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t offset = 0
    cdef int axis = rows.n_axes - 1
    while axis > 0:
        offset += i % rows.shape[axis] * rows.strides[axis]
        i //= rows.shape[axis]
        axis -= 1
    return rows.data + offset + i * rows.strides[0]


cdef inline Py_ssize_t run_from(const Layout* rows, Py_ssize_t i, Py_ssize_t count) noexcept nogil:
    """How many of `count` rows from i on are rows.step apart."""
    return count if rows.n_axes == 1 else min(count, rows.length - i % rows.length)


cdef inline bint read_labels(
    const Layout* labels, Py_ssize_t i, Py_ssize_t count, const LabelRange* range, int64_t* to
) noexcept nogil:
    """What LabelsReader in elements.hpp does, for `count` labels from i on."""
    cdef Py_ssize_t done = 0, run
    cdef bint good = True
    while done < count:
        run = run_from(labels, i + done, count - done)
        good &= element_of(labels[0]).read_labels(
            row_address(labels, i + done), labels.step, run, range[0], to + done if to != NULL else NULL)
        done += run
    return good


cdef inline void read_numbers(const Layout* numbers, Py_ssize_t i, Py_ssize_t count, double* to) noexcept nogil:
    """Read `count` numbers from i on, of an array without a class axis."""
    cdef Py_ssize_t done = 0, run
    while done < count:
        run = run_from(numbers, i + done, count - done)
        element_of(numbers[0]).read(row_address(numbers, i + done), numbers.step, run, to + done)
        done += run


cdef void read_apart(
    real* to, const char* source, const Layout* layout, Py_ssize_t stride, Py_ssize_t n
) noexcept nogil:
    """Read n elements that are `stride` bytes apart, of any type."""
    cdef double[PIECE] piece
    cdef Py_ssize_t start = 0, count, k
    while start < n:
        count = min(PIECE, n - start)
        element_of(layout[0]).read(source + start * stride, stride, count, piece)
        for k in range(count):
            to[start + k] = <real> piece[k]
        start += count


cdef void read_row(real* to, const char* source, const Layout* rows, Py_ssize_t n) noexcept nogil:
    if rows.direct:
        if to != <real*> source:
            memcpy(to, source, n * sizeof(real))
        return
    if rows.packed:
        read_side_by_side(rows[0], source, to, n)
        return
    read_apart(to, source, rows, rows.class_stride, n)


cdef void write_row(char* to, const real* source, const Layout* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    if rows.packed:
        write_side_by_side(rows[0], to, source, n)
        return
    for c in range(n):
        element_of(rows[0]).write(to + c * rows.class_stride, source[c])


cdef inline bint has_nan(const real* x, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(n):
        if x[c * stride] != x[c * stride]:
            return True
    return False


cdef void zero_row(const Layout* rows, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    cdef char* start = row_address(rows, i)
    cdef Py_ssize_t c
    if rows.packed and n > 1:
        memset(start, 0, n * rows.class_stride)
        return
    for c in range(n):
        element_of(rows[0]).write(start + c * rows.class_stride, 0)
