# Tiles: as many rows as Lanes has lanes. Class c of the row in lane k is at tile[c * lanes_of(tile) + k].


cdef bint place_lanes(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n_lanes, char** at, char* spare
) noexcept nogil:
    """at[lane] becomes the start of a row: `count` rows from i on, then `spare`, or the last row again if that is NULL.

    True if the `count` rows are rows.step apart.
    """
    cdef Py_ssize_t lane = 0, run, k
    cdef char* start
    while lane < count:
        start = row_address(rows, i + lane)
        run = run_from(rows, i + lane, count - lane)
        for k in range(run):
            at[lane + k] = start + k * rows.step
        lane += run
    for lane in range(count, n_lanes):
        at[lane] = at[count - 1] if spare == NULL else spare
    return run == count


cdef inline bint are_short(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, const real* tag
) noexcept nogil:
    """Whether the `count` rows from i on are short, and one comes right after the other."""
    return (
        is_short(tag, n) and rows.direct and rows.step == n * <Py_ssize_t> sizeof(real)
        and run_from(rows, i, count) == count)


cdef inline void place_staged(real* staging, Py_ssize_t n, Py_ssize_t count, char** at) noexcept nogil:
    """at[lane] becomes the start of a row in `staging`; from `count` on, that of the last row."""
    cdef Py_ssize_t lane
    for lane in range(lanes_of(staging)):
        at[lane] = <char*> (staging + min(lane, count - 1) * max(n, in_quarter(staging)))


cdef void read_tile(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, real* tile, real* staging
) noexcept nogil:
    """Rows to lanes, `count` rows from i on; the other lanes hold zeros, or the last row again."""
    cdef char* at[MAX_LANES]
    cdef char* staged[MAX_LANES]
    cdef Py_ssize_t lane, c
    cdef bint even
    if are_short(rows, i, count, n, tile):
        short_rows_to_lanes(<real*> row_address(rows, i), n, count, tile, staging)
        return
    even = place_lanes(rows, i, count, lanes_of(tile), at, NULL)
    if rows.direct and n >= in_quarter(tile):
        rows_to_lanes(<real**> at, n, tile)
    elif rows.packed:
        place_staged(staging, n, count, staged)
        if even and rows.step == n * rows.class_stride and n >= in_quarter(tile):
            read_side_by_side(rows[0], at[0], staging, count * n)
        else:
            for lane in range(count):
                read_side_by_side(rows[0], at[lane], <real*> staged[lane], n)
        rows_to_lanes(<real**> staged, n, tile)
    elif rows.stacked and even:
        for c in range(n):
            if rows.typed:
                store(tile + c * lanes_of(tile), load_lanes_first(<real*> (at[0] + c * rows.class_stride), count, 0))
            else:
                store(tile + c * lanes_of(tile), Lanes[real](0))
                read_side_by_side(rows[0], at[0] + c * rows.class_stride, tile + c * lanes_of(tile), count)
    elif rows.typed:
        for c in range(n):
            for lane in range(lanes_of(tile)):
                tile[c * lanes_of(tile) + lane] = (<real*> (at[lane] + c * rows.class_stride))[0]
    else:
        for lane in range(count):
            read_row(staging, at[lane], rows, n)
            for c in range(n):
                tile[c * lanes_of(tile) + lane] = staging[c]
        for c in range(n):
            for lane in range(count, lanes_of(tile)):
                tile[c * lanes_of(tile) + lane] = tile[c * lanes_of(tile) + count - 1]


cdef void write_tile(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, const real* tile, real* staging,
    bint streaming
) noexcept nogil:
    """Lanes to rows, `count` rows from i on."""
    cdef Lanes[real] column
    cdef char* at[MAX_LANES]
    cdef char* staged[MAX_LANES]
    cdef Py_ssize_t lane, c
    cdef bint even
    if are_short(rows, i, count, n, tile):
        lanes_to_short_rows(tile, n, count, <real*> row_address(rows, i), staging)
        return
    even = place_lanes(rows, i, count, lanes_of(tile), at, <char*> staging)
    if rows.direct and n >= in_quarter(tile):
        lanes_to_rows(tile, n, <real**> at)
    elif rows.packed:
        place_staged(staging, n, lanes_of(tile), staged)
        lanes_to_rows(tile, n, <real**> staged)
        if even and rows.step == n * rows.class_stride and n >= in_quarter(tile):
            write_side_by_side(rows[0], at[0], staging, count * n)
        else:
            for lane in range(count):
                write_side_by_side(rows[0], at[lane], <real*> staged[lane], n)
    elif rows.stacked and even:
        for c in range(n):
            column = load_lanes(tile + c * lanes_of(tile))
            if not rows.typed:
                write_side_by_side(rows[0], at[0] + c * rows.class_stride, tile + c * lanes_of(tile), count)
            elif streaming and count == lanes_of(tile) and to_line(<real*> at[0]) == 0:
                stream(<real*> (at[0] + c * rows.class_stride), column)
            else:
                store_first(<real*> (at[0] + c * rows.class_stride), count, column)
    elif rows.typed:
        for c in range(n):
            for lane in range(count):
                (<real*> (at[lane] + c * rows.class_stride))[0] = tile[c * lanes_of(tile) + lane]
    else:
        for lane in range(count):
            for c in range(n):
                element_of(rows[0]).write(at[lane] + c * rows.class_stride, tile[c * lanes_of(tile) + lane])


cdef inline bint place_results(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, real* staging, bint streaming, char** at
) noexcept nogil:
    """at[lane] becomes the start of a row that is to be made: where it goes, or in `staging` on its way there.

    True if it is in `staging`, for stream_results.
    """
    if streaming and count == lanes_of(staging):
        place_staged(staging, n, count, at)
        return True
    place_lanes(rows, i, count, lanes_of(staging), at, <char*> staging)
    return False


cdef inline void stream_results(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, const real* staging, bint staged
) noexcept nogil:
    """Store the rows that were made in `staging`, past the caches; nothing if they are not there."""
    if staged:
        stream_row(staging, <real*> row_address(rows, i), count * n)


cdef NextRows find_next_rows(const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n) noexcept nogil:
    """Where `count` rows from i on are; a step of 0 if neither rows nor the elements of a class are close together."""
    cdef Py_ssize_t size = n * rows.class_stride
    cdef NextRows next_rows = NextRows(row_address(rows, i), 0)
    if rows.packed and rows.n_axes == 1 and size <= rows.step <= size + 64:
        next_rows.step = count * rows.step // n
    elif (rows.typed or rows.stacked) and 0 < rows.step * count <= LANE_BYTES:
        next_rows.step = rows.class_stride
    return next_rows


cdef void zero_lanes(real* tile, const double* weight, Py_ssize_t n) noexcept nogil:
    """Set the lanes of rows of weight 0 to zero."""
    cdef real[MAX_LANES] counts
    cdef Lanes[real] zero = Lanes[real](0)
    cdef Py_ssize_t lane, c
    for lane in range(lanes_of(tile)):
        counts[lane] = weight[lane] != 0
    for c in range(n):
        store(tile + c * lanes_of(tile), select_equal(
            load_lanes(&counts[0]), zero, zero, load_lanes(tile + c * lanes_of(tile))))
