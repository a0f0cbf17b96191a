# Panels: if the rows of an array are closer together than its classes, a group of rows is copied to a panel, where its
# classes are side by side. There the wide kernel visits them like other rows. Their gradient is copied back.
#
# A few classes of all these rows are copied at a time, since the elements of a class share cache lines. A whole group
# is read before any of it is written, so the gradient may overwrite the logits, in the panel and in the caller's array.

cdef enum:
    PANEL_STEP = 16             # classes that are copied at once; rows in panels have more


cdef struct Panels:
    Job job                     # the call's own job, but with rows where they are in the panels
    const Job* call             # the call's own job
    Py_ssize_t row, stop        # the rows [row, stop) are in the panels
    Py_ssize_t last             # the end of the rows that this thread visits
    char* space                 # of the panels


cdef inline void prefetch_classes(const Layout* rows, const char* start, Py_ssize_t count) noexcept nogil:
    """Prefetch `count` elements of each of the next classes, from `start` on: the CPU cannot guess where they are."""
    cdef Py_ssize_t past, c
    if not rows.stacked:
        return
    for c in range(PANEL_STEP):
        past = <Py_ssize_t> start % CACHE_LINE
        prefetch(start - past, past + count * rows.step)
        start += rows.class_stride


cdef inline void read_class(const Layout* rows, const char* start, Py_ssize_t count, real* to) noexcept nogil:
    """Read `count` elements of a class."""
    if rows.stacked and rows.typed:
        memcpy(to, start, count * sizeof(real))
    elif rows.stacked:
        read_side_by_side(rows[0], start, to, count)
    else:
        read_apart(to, start, rows, rows.step, count)


cdef inline void write_class(
    const Layout* rows, char* start, Py_ssize_t count, const real* source, bint streaming
) noexcept nogil:
    """Write `count` elements of a class."""
    cdef Py_ssize_t k
    if streaming:                   # then they are stacked and typed
        stream_row(source, <real*> start, count)
    elif rows.stacked and rows.typed:
        memcpy(start, source, count * sizeof(real))
    elif rows.stacked:
        write_side_by_side(rows[0], start, source, count)
    else:
        for k in range(count):
            element_of(rows[0]).write(start + k * rows.step, source[k])


cdef void read_panel(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, real* panel, Py_ssize_t pitch
) noexcept nogil:
    """Copy `count` rows from i on, which are rows.step apart, to the panel."""
    cdef Tile[real] tile
    cdef real[PANEL_STEP] spare
    cdef const char* start
    cdef const real* columns = tile.space
    cdef bint in_place = rows.stacked and rows.typed and count % vec_lanes(panel) == 0
    cdef Py_ssize_t stride = (rows.class_stride if in_place else PANEL_WIDTH) // <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t first = 0, c
    while first < n:
        # The last classes may be copied twice.
        first = min(first, n - PANEL_STEP)
        start = row_address(rows, i) + first * rows.class_stride
        prefetch_classes(rows, start + PANEL_STEP * rows.class_stride, count)
        if in_place:
            columns = <const real*> start
        else:
            for c in range(PANEL_STEP):
                read_class(rows, start + c * rows.class_stride, count, tile.space + c * stride)
        columns_to_panel(columns, stride, PANEL_STEP, panel + first, pitch, count, spare)
        first += PANEL_STEP


cdef void write_panel(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, const real* panel, Py_ssize_t pitch,
    bint streaming
) noexcept nogil:
    """Copy `count` rows from i on, which are rows.step apart, from the panel."""
    cdef Tile[real] tile
    cdef char* start
    cdef Py_ssize_t width = PANEL_WIDTH // <Py_ssize_t> sizeof(real), first = 0, c
    while first < n:
        first = min(first, n - PANEL_STEP)
        start = row_address(rows, i) + first * rows.class_stride
        if not streaming:
            prefetch_classes(rows, start + PANEL_STEP * rows.class_stride, count)
        panel_to_columns(panel + first, pitch, count, PANEL_STEP, tile.space, width)
        for c in range(PANEL_STEP):
            write_class(rows, start + c * rows.class_stride, count, tile.space + c * width, streaming)
        first += PANEL_STEP


cdef void read_panel_of_bytes(
    const Layout* rows, Py_ssize_t i, Py_ssize_t count, Py_ssize_t n, char* panel, Py_ssize_t pitch
) noexcept nogil:
    """As read_panel, for elements of one byte each."""
    cdef char[PANEL_STEP * PANEL_WIDTH] buffer
    cdef const char* start
    cdef Py_ssize_t first = 0, c, k
    while first < n:
        first = min(first, n - PANEL_STEP)
        start = row_address(rows, i) + first * rows.class_stride
        prefetch_classes(rows, start + PANEL_STEP * rows.class_stride, count)
        for c in range(PANEL_STEP):
            for k in range(count):
                buffer[k * PANEL_STEP + c] = start[c * rows.class_stride + k * rows.step]
        for k in range(count):
            memcpy(panel + k * pitch + first, buffer + k * PANEL_STEP, PANEL_STEP)
        first += PANEL_STEP


cdef inline Py_ssize_t rows_together(const Job* job, Py_ssize_t i, Py_ssize_t count) noexcept nogil:
    """How many of `count` rows from i on are evenly spaced in all arrays that have a panel.

    A group of rows ends with a cache line, so that the next ones read and write whole lines.
    """
    cdef const Layout* rows = &job.grad if job.grad.panel >= 0 else &job.logits
    cdef Py_ssize_t past = <Py_ssize_t> row_address(rows, i) % CACHE_LINE // rows.step if rows.stacked else 0
    count = count - past if count > past else count
    if job.logits.panel >= 0:
        count = run_from(&job.logits, i, count)
    if job.grad.panel >= 0:
        count = run_from(&job.grad, i, count)
    if job.targets.panel >= 0:
        count = run_from(&job.targets, i, count)
    if job.allowed.panel >= 0:
        count = run_from(&job.allowed, i, count)
    if job.vectors.panel >= 0:
        count = run_from(&job.vectors, i, count)
    if job.hess.panel >= 0:
        count = run_from(&job.hess, i, count)
    return count


cdef void open_panels(Panels* panels, const Job* job, Py_ssize_t last, char* space) noexcept nogil:
    """Prepare panels for rows up to `last`; there are none in them yet."""
    panels.job = job[0]
    panels.job.streaming = job.streaming and job.grad.panel < 0
    panels.call = job
    panels.row = panels.stop = 0
    panels.last = last
    panels.space = space


cdef inline void place_rows(Layout* rows, Py_ssize_t i, char* panel, Py_ssize_t pitch, Py_ssize_t size) noexcept nogil:
    """`rows` becomes the layout of a panel: rows from i on, `pitch` elements of `size` bytes apart."""
    rows.packed = rows.typed = rows.direct = rows.loadable = True
    rows.element = BOOLEAN if size == 1 else FLOAT32 if size == sizeof(float) else FLOAT64
    rows.n_axes = 1
    rows.class_stride = size
    rows.step = rows.strides[0] = pitch * size
    rows.data = panel - i * rows.step


cdef void close_panels(Panels* panels, const real* tag) noexcept nogil:
    """Copy the results of the rows in the panels to where they belong."""
    cdef const Job* job = panels.call
    cdef Py_ssize_t count = panels.stop - panels.row, n = job.n_classes, pitch = job.panel_pitch
    if job.grad.panel >= 0 and count > 0:
        write_panel(
            &job.grad, panels.row, count, n, <real*> (panels.space + job.grad.panel), pitch, job.streaming)
        if job.streaming:
            fence_streams()
    if job.hess.panel >= 0 and count > 0:
        write_panel(&job.hess, panels.row, count, n, <real*> (panels.space + job.hess.panel), pitch, False)


cdef Py_ssize_t turn_panels(Panels* panels, Py_ssize_t i, const real* tag) noexcept nogil:
    """Bring row i into the panels, if it is not there. Returns how many of the rows from i on are there."""
    cdef const Job* job = panels.call
    cdef Job* on_panels = &panels.job
    cdef Py_ssize_t n = job.n_classes, pitch = job.panel_pitch, count
    if i < panels.stop:
        return panels.stop - i
    close_panels(panels, tag)
    count = rows_together(job, i, min(job.panel_rows, panels.last - i))
    panels.row = i
    panels.stop = i + count
    if job.logits.panel >= 0:
        read_panel(&job.logits, i, count, n, <real*> (panels.space + job.logits.panel), pitch)
        place_rows(&on_panels.logits, i, panels.space + job.logits.panel, pitch, sizeof(real))
    if job.grad.panel >= 0:
        place_rows(&on_panels.grad, i, panels.space + job.grad.panel, pitch, sizeof(real))
    if job.targets.panel >= 0:
        read_panel(&job.targets, i, count, n, <real*> (panels.space + job.targets.panel), pitch)
        place_rows(&on_panels.targets, i, panels.space + job.targets.panel, pitch, sizeof(real))
    if job.allowed.panel >= 0:
        read_panel_of_bytes(&job.allowed, i, count, n, panels.space + job.allowed.panel, pitch)
        place_rows(&on_panels.allowed, i, panels.space + job.allowed.panel, pitch, 1)
    if job.vectors.panel >= 0:
        read_panel(&job.vectors, i, count, n, <real*> (panels.space + job.vectors.panel), pitch)
        place_rows(&on_panels.vectors, i, panels.space + job.vectors.panel, pitch, sizeof(real))
    if job.hess.panel >= 0:
        place_rows(&on_panels.hess, i, panels.space + job.hess.panel, pitch, sizeof(real))
    return count
