# What is found in one sweep over the n numbers of a row or a stretch: the maximum, the range, sums.
#
# Lanes lie across the classes. Whole Blocks come first, then Vecs, the last of them in part. No memory beyond the n
# numbers is touched.


cdef inline double row_max(const real* x, Py_ssize_t n) noexcept nogil:
    """The largest element that is not NaN; -inf if all are NaN."""
    cdef Py_ssize_t i = line_start(x, n)
    cdef Block[real] maxima = Block[real](-INFINITY)
    cdef Vec[real] most = Vec[real](-INFINITY)
    if i > 0:
        most = maximum(load_first(x, i, -INFINITY), most)
    while i + block_lanes(x) <= n:
        maxima = maximum(load_block(x + i), maxima)
        i += block_lanes(x)
    while i + vec_lanes(x) <= n:
        most = maximum(load(x + i), most)
        i += vec_lanes(x)
    if i < n:
        most = maximum(load_first(x + i, n - i, -INFINITY), most)
    return largest(maximum(fold_largest(maxima), most))


cdef inline double row_range(const real* x, Py_ssize_t n, double* size) noexcept nogil:
    """The largest element, -inf if all are NaN; `size` becomes the largest absolute value of a finite one."""
    cdef Block[real] zero = Block[real](0), most = Block[real](-INFINITY), least = most, v
    cdef Vec[real] infinite = Vec[real](INFINITY), nothing = Vec[real](0), top, bottom, w
    cdef Py_ssize_t i = 0
    while i + block_lanes(x) <= n:
        v = load_block(x + i)
        most = maximum(v, most)
        least = maximum(zero - v, least)
        i += block_lanes(x)
    top, bottom = fold_largest(most), fold_largest(least)
    while i < n:
        w = load_first(x + i, min(vec_lanes(x), n - i), x[i])
        top = maximum(w, top)
        bottom = maximum(Vec[real](0) - w, bottom)
        i += vec_lanes(x)
    size[0] = max(largest(top), largest(bottom))
    if size[0] == INFINITY:
        bottom = nothing
        i = 0
        while i < n:
            w = load_first(x + i, min(vec_lanes(x), n - i), 0)
            w = maximum(w, nothing - w)
            bottom = maximum(select_equal(w, infinite, nothing, w), bottom)
            i += vec_lanes(x)
        size[0] = largest(bottom)
    return largest(top)


cdef inline bint are_moderate(const real* v, Py_ssize_t n) noexcept nogil:
    """Whether the sum of 10^12 products of two such numbers is in range. Infinite ones are ignored."""
    cdef double size
    row_range(v, n, &size)
    return size * size <= largest_number(v) / 1e12


cdef inline Sum[real] exp_blocks(
    const real* x, real* e, Py_ssize_t start, Py_ssize_t stop, RowUnit[real] unit, Sum[real] total,
    Py_ssize_t prefetch_distance
) noexcept nogil:
    """Exponentials of as many whole Blocks as fit, added to `total`; e may be NULL, or x.

    Logits are prefetched `prefetch_distance` ahead, unless that is 0.
    """
    while start + block_lanes(x) <= stop:
        if prefetch_distance != 0:
            prefetch(<char*> (x + start + prefetch_distance), sizeof(real) * block_lanes(x))
        total.add(exp_block(x + start, <real*> NULL if e == NULL else e + start, unit))
        start += block_lanes(x)
    return total


cdef inline Sum[real] exp_vectors(
    const real* x, real* e, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t left_out, RowUnit[real] unit,
    Sum[real] total
) noexcept nogil:
    """Exponentials of any stretch, Vec by Vec; the one at `left_out` is written, but not added."""
    cdef Py_ssize_t count
    cdef Vec[real] v
    while start < stop:
        count = min(vec_lanes(x), stop - start)
        v = exp(load_first(x + start, count, -INFINITY), unit)
        total.add(without_lane(v, left_out - start))
        if e != NULL:
            store_first(e + start, count, v)
        start += vec_lanes(x)
    return total


cdef inline Carried[double] exp_sum(
    const real* x, real* e, Py_ssize_t n, Py_ssize_t left_out, RowUnit[real] unit, Py_ssize_t prefetch_distance
) noexcept nogil:
    """The sum of all exponentials of a row, or of a stretch of it, but that of the class `left_out`."""
    cdef Py_ssize_t width = block_lanes(x)
    cdef Py_ssize_t blocks_end = n - n % width
    cdef Py_ssize_t split = left_out - left_out % width if 0 <= left_out < blocks_end else blocks_end
    cdef Sum[real] total
    cdef Block[real] v
    # Whole blocks up to the one with `left_out`, that one, whole blocks again, and the tail Vec by Vec. The order of
    # additions does not depend on where `left_out` is.
    total = exp_blocks(x, e, 0, split, unit, total, prefetch_distance)
    if split < blocks_end:
        v = exp(load_block(x + split), unit)
        total.add(fold_sum(without_lane(v, left_out - split)))
        if e != NULL:
            store(e + split, v)
        total = exp_blocks(x, e, split + width, blocks_end, unit, total, prefetch_distance)
    total = exp_vectors(x, e, blocks_end, n, left_out, unit, total)
    return total.value()


cdef inline Carried[double] gap_sum(const real* x, Py_ssize_t n, double m) noexcept nogil:
    """The sum of m - x_j."""
    cdef Sum[real] total
    cdef Py_ssize_t i = 0
    while i + block_lanes(x) <= n:
        total.add(fold_sum(Block[real](m) - load_block(x + i)))
        i += block_lanes(x)
    while i < n:
        total.add(Vec[real](m) - load_first(x + i, min(vec_lanes(x), n - i), m))
        i += vec_lanes(x)
    return total.value()
