# The wide kernel: one row at a time, lanes across its classes.
#
# With m the row's largest logit, a the first class there that the target wants (any there, if it wants none),
# e_j = exp(x_j - m), so e_a = 1, R the sum of e_j over j != a, and S = R + 1:
#     loss       T * log1p(R) + sum over j of t_j (m - x_j),   T = sum of t_j  (one, for a class label)
#     gradient   T * e_j / S - t_j,   and at a, where p_a > 1/2:   (T - t_a) - T * R / S
# In a confident row R is tiny and p_a - t_a cancels. So where the target wants a, neither R nor T - t_a ever contains
# what a contributes; where it does not, nothing cancels and e_a is taken off the sum of all.
#
# Three sweeps over a row that stays in cache: maximum, exponentials (written where the gradient will stand), scaling.
# The exponentials are counted in a power of two near e^m (Unit in vec.hpp), which R / e_a and e_j / S are free of.
#
# Assumes n >= 1 contiguous, aligned elements. The gradient may overwrite the logits it comes from; it may not overlap
# the targets. Never allocates, never raises: NaN and infinities flow through the arithmetic.


cdef inline double row_max(const storage* x, Py_ssize_t n) noexcept nogil:
    """The largest element, NaNs passed over; -inf if there is nothing else."""
    cdef Py_ssize_t i = line_start(x, n)
    cdef Block[storage] tops = Block[storage](-INFINITY)
    cdef Vec[storage] top = Vec[storage](-INFINITY)
    if i > 0:
        top = maximum(load_first(x, i, -INFINITY), top)
    while i + block_lanes(x) <= n:
        tops = maximum(load_block(x + i), tops)
        i += block_lanes(x)
    while i + vec_lanes(x) <= n:
        top = maximum(load(x + i), top)
        i += vec_lanes(x)
    if i < n:
        top = maximum(load_first(x + i, n - i, -INFINITY), top)
    return largest(maximum(fold_largest(tops), top))


cdef inline Sum[storage] exp_blocks(
    const storage* x, storage* e, Py_ssize_t start, Py_ssize_t stop, Unit[storage] unit, Sum[storage] total
) noexcept nogil:
    """Exponentials of as many whole Blocks as fit; e may be NULL, or x."""
    cdef Block[storage] v
    while start + block_lanes(x) <= stop:
        v = exp(load_block(x + start), unit)
        total.add(fold_sum(v))
        if e != NULL:
            store(e + start, v)
        start += block_lanes(x)
    return total


cdef inline Sum[storage] exp_vectors(
    const storage* x, storage* e, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t left_out, Unit[storage] unit,
    Sum[storage] total
) noexcept nogil:
    """Exponentials of any stretch; the one at `left_out` is written, but not added."""
    cdef Py_ssize_t count
    cdef Vec[storage] v
    while start < stop:
        count = min(vec_lanes(x), stop - start)
        v = exp(load_first(x + start, count, -INFINITY), unit)
        total.add(without_lane(v, left_out - start))
        if e != NULL:
            store_first(e + start, count, v)
        start += vec_lanes(x)
    return total


cdef inline double exp_sum(
    const storage* x, storage* e, Py_ssize_t n, Py_ssize_t top, double e_top, Unit[storage] unit, double* rounded
) noexcept nogil:
    """The sum of all exponentials but the e_top of one class at the maximum: class `top`, or any if `top` is -1."""
    cdef Py_ssize_t width = block_lanes(x)
    cdef Py_ssize_t blocks_end = n - n % width
    cdef Py_ssize_t done = 0, stop = blocks_end
    cdef Sum[storage] total
    if top >= 0:
        stop = top - top % width
    # Whole blocks up to the one with `top`, that one Vec by Vec, whole blocks again, the tail Vec by Vec.
    while done < n:
        total = exp_blocks(x, e, done, stop, unit, total)
        done = min(stop + width, n)
        total = exp_vectors(x, e, stop, done, top, unit, total)
        stop = blocks_end
    return total.value_less(e_top if top < 0 else 0, rounded)


cdef inline void scale_row(storage* e, Py_ssize_t n, double factor) noexcept nogil:
    # Stores that cross a cache line cost twice; where a row starts is chance.
    cdef Py_ssize_t i = line_start(e, n), count
    if i > 0:
        store_first(e, i, load_first(e, i, 0) * Vec[storage](factor))
    while i + block_lanes(e) <= n:
        store(e + i, load_block(e + i) * Block[storage](factor))
        i += block_lanes(e)
    while i < n:
        count = min(vec_lanes(e), n - i)
        store_first(e + i, count, load_first(e + i, count, 0) * Vec[storage](factor))
        i += vec_lanes(e)


cdef inline void blend_row(storage* e, const storage* t, Py_ssize_t n, double factor, double minus) noexcept nogil:
    """e becomes factor * e + minus * t."""
    cdef Py_ssize_t i = 0, count
    cdef Vec[storage] part
    while i < n:
        count = min(vec_lanes(e), n - i)
        part = load_first(t + i, count, 0) * Vec[storage](minus)
        store_first(e + i, count, fma(load_first(e + i, count, 0), Vec[storage](factor), part))
        i += vec_lanes(e)


cdef struct Target:
    # What a row's target comes to, once the row's maximum m is known.
    double mass           # sum of t_j
    double cross          # sum of t_j (m - x_j); a t_j of 0 adds 0 whatever x_j is
    Py_ssize_t top        # the first j with x_j = m and t_j != 0, -1 if there is none
    double at_top         # t_j there
    double rest           # sum of all other t_j


cdef inline Target label_target(const storage* x, Py_ssize_t y, double m) noexcept nogil:
    cdef bint at_top = x[y] == m
    return Target(1, m - x[y], y if at_top else -1, at_top, not at_top)


cdef inline Target distribution_target(const storage* x, const storage* t, Py_ssize_t n, double m) noexcept nogil:
    cdef Target target = Target(0, 0, -1, 0, 0)
    cdef Vec[storage] top = Vec[storage](m)
    cdef Vec[storage] zero = Vec[storage](0)
    cdef Vec[storage] weights, logits
    cdef Sum[storage] cross, rest
    cdef Py_ssize_t i = 0, count
    cdef unsigned int wanted
    while i < n:
        count = min(vec_lanes(x), n - i)
        weights = load_first(t + i, count, 0)
        logits = load_first(x + i, count, 0)
        cross.add_gaps(weights, logits, m)
        if target.top < 0:
            wanted = equal_bits(logits, top) & ~equal_bits(weights, zero)
            if wanted:
                target.top = i + lowest_bit(wanted)
                target.at_top = t[target.top]
                weights = without_lane(weights, target.top - i)
        rest.add(weights)
        i += vec_lanes(x)
    target.rest = rest.value()
    target.mass = target.rest + target.at_top
    target.cross = cross.value()
    return target


cdef struct Outcome:
    # A row's loss is mass * log1p((R + R_low) / e_a) + cross, with e_a from high + low (see Unit); see row_losses.
    double R
    double R_low
    double high
    double low
    double mass
    double cross


cdef inline Outcome visit_row(
    const storage* x, storage* g, const storage* t, Py_ssize_t y, Py_ssize_t n, double scale
) noexcept nogil:
    """Visit one row; its gradient times `scale` is written to g unless g is NULL.

    The target is the distribution t, or the class y where t is NULL.
    """
    cdef double m = row_max(x, n)
    cdef Unit[storage] unit = Unit[storage](m)
    # All else that is needed of x is read before exp_sum, which may overwrite it.
    cdef Target target = label_target(x, y, m) if t == NULL else distribution_target(x, t, n, m)
    cdef double e_top = first(exp(Vec[storage](m), unit))
    cdef double R_low
    cdef double R = exp_sum(x, g, n, target.top, e_top, unit, &R_low)
    cdef double S, S_low, factor
    cdef Vec[storage] at_label
    if g != NULL:
        S = R + e_top
        S_low = rounded_off(e_top, R, S) + R_low
        factor = divide(x, scale * target.mass, S, S_low)
        if fabs(factor) < smallest_normal(x):
            # A target of next to no mass: its factor keeps its digits only if the unit is taken out first.
            scale_row(g, n, 1 / unit_size(x))
            factor = scale * target.mass / (S / unit_size(x))
        if t == NULL:
            at_label = fma(Vec[storage](g[y]), Vec[storage](factor), Vec[storage](-scale))
            scale_row(g, n, factor)
            g[y] = <storage> first(at_label)
        else:
            blend_row(g, t, n, factor, -scale)
        if target.top >= 0 and R < e_top:
            g[target.top] = <storage> (scale * (target.rest - target.mass * divide(x, R, S, S_low)))
    return Outcome(R, R_low, unit.high, unit.low, target.mass, target.cross)
