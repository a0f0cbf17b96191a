# The wide kernel: one row at a time, lanes across its classes.
#
# With T the sum of the target t, m the row's largest logit, a the first class there that the target wants (any there,
# if it wants none), e_j = exp(x_j - m), so e_a = 1, R the sum of e_j over j != a, and S = R + 1:
#     loss       T * log1p(R) + sum over j of t_j (m - x_j)
#     gradient   T * e_j / S - t_j,   and at a, where p_a > 1/2:   (T - t_a) - T * R / S
# In a confident row R is tiny and p_a - t_a cancels. So where the target wants a, neither R nor T - t_a ever contains
# what a contributes; where it does not, nothing cancels and e_a is taken off the sum of all.
#
# Smoothing leaves (1 - s) t_j of the target and gives s T / n to each of the n classes besides. A share for all is too
# small to cancel with p_a, so t alone decides on a. To z_loss * lse^2 belongs the gradient 2 z_loss * lse * p_j.
#
# Three sweeps over a row that stays in cache: maximum, exponentials (written where the gradient will stand, or to a
# scratch row if that is beyond the cache), scaling. The maximum of the next row is taken before the scaling of this
# one, whose factor takes long to come. The exponentials are counted in a power of two near e^m (Unit in rowmath.hpp),
# which R / e_a and e_j / S are free of.
#
# Long rows are added up in stretches, and these in order, so that several threads may share one row: see batch.pxi.
#
# Assumes n >= 1 contiguous, aligned elements. The gradient may overwrite the logits it comes from; it may not overlap
# the targets. Never allocates, never raises: NaN and infinities flow through the arithmetic.


cdef enum:
    STRETCH = 16384             # classes
    MAX_STRETCHES = 256
    SCALE_STEP = 1 << 30
    MAX_SCALE_STEPS = 100       # more than any two doubles' product is worth


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


cdef inline double row_range(const storage* x, Py_ssize_t n, double* size) noexcept nogil:
    """row_max, and in `size` the largest absolute value of a finite logit; infinite if the maximum is."""
    cdef Vec[storage] zero = Vec[storage](0), infinite = Vec[storage](-INFINITY), v, top = infinite, bottom = zero
    cdef Py_ssize_t i = 0
    while i < n:
        v = load_first(x + i, min(vec_lanes(x), n - i), -INFINITY)
        top = maximum(v, top)
        bottom = maximum(select_equal(v, infinite, zero, zero - v), bottom)
        i += vec_lanes(x)
    size[0] = max(largest(top), largest(bottom))
    return largest(top)


cdef inline Sum[storage] exp_blocks(
    const storage* x, storage* e, Py_ssize_t start, Py_ssize_t stop, RowUnit[storage] unit, Sum[storage] total,
    Py_ssize_t ahead
) noexcept nogil:
    """Exponentials of as many whole Blocks as fit; e may be NULL, or x.

    What is `ahead` of x is asked for, unless that is 0.
    """
    while start + block_lanes(x) <= stop:
        if ahead != 0:
            prefetch(<char*> (x + start + ahead), sizeof(storage) * block_lanes(x))
        total.add(exp_block(x + start, <storage*> NULL if e == NULL else e + start, unit))
        start += block_lanes(x)
    return total


cdef inline Sum[storage] exp_vectors(
    const storage* x, storage* e, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t left_out, RowUnit[storage] unit,
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


cdef inline Carried[double] exp_sum(
    const storage* x, storage* e, Py_ssize_t n, Py_ssize_t left_out, RowUnit[storage] unit, Py_ssize_t ahead
) noexcept nogil:
    """The sum of all exponentials of a row, or of a stretch of it, but that of the class `left_out`."""
    cdef Py_ssize_t width = block_lanes(x)
    cdef Py_ssize_t blocks_end = n - n % width
    cdef Py_ssize_t special = left_out - left_out % width if 0 <= left_out < blocks_end else blocks_end
    cdef Sum[storage] total
    cdef Block[storage] v
    # Whole blocks up to the one with `left_out`, that one, whole blocks again, and the tail Vec by Vec. What is added
    # to what does not depend on where `left_out` is.
    total = exp_blocks(x, e, 0, special, unit, total, ahead)
    if special < blocks_end:
        v = exp(load_block(x + special), unit)
        total.add(fold_sum(without_lane(v, left_out - special)))
        if e != NULL:
            store(e + special, v)
        total = exp_blocks(x, e, special + width, blocks_end, unit, total, ahead)
    total = exp_vectors(x, e, blocks_end, n, left_out, unit, total)
    return total.value()


cdef inline Carried[double] gap_sum(const storage* x, Py_ssize_t n, double m) noexcept nogil:
    """The sum of m - x_j."""
    cdef Sum[storage] total
    cdef Py_ssize_t i = 0
    while i + block_lanes(x) <= n:
        total.add(fold_sum(Block[storage](m) - load_block(x + i)))
        i += block_lanes(x)
    while i < n:
        total.add(Vec[storage](m) - load_first(x + i, min(vec_lanes(x), n - i), m))
        i += vec_lanes(x)
    return total.value()


cdef inline void find_amounts(
    Part* part, const storage* x, Py_ssize_t stride, const Target[storage]* target, Py_ssize_t start, Py_ssize_t n,
    double m
) noexcept nogil:
    """What the n classes from `start` on contribute of a target that is amounts for some; logits are `stride` apart."""
    cdef Carried[double] cross = Carried[double](0, 0), rest = cross
    cdef Py_ssize_t i, c, top = -1
    cdef double amount, logit, at_top = 0
    for i in range(target.count):
        c = target.classes[i] - start
        if not 0 <= c < n:
            continue
        amount = target.amount(i, start + c)
        if amount != 0:
            logit = x[c * stride]
            cross.add(amount * (m - logit))
            if top < 0 and logit == m:
                top = c
            if top == c:
                at_top += amount
            else:
                rest.add(amount)
    part.cross, part.rest = cross, rest
    part.top, part.at_top = top, at_top


cdef inline void add_distribution(
    Part* part, Vec[storage] logits, Vec[storage] weights, Vec[storage] top, Py_ssize_t i, Sum[storage]* cross,
    Sum[storage]* rest
) noexcept nogil:
    cdef storage[MAX_VEC_LANES] lanes
    cdef unsigned int wanted
    cross.add_gaps(weights, logits, top)
    if part.top < 0:
        wanted = equal_bits(logits, top) & ~equal_bits(weights, Vec[storage](0))
        if wanted:
            store(lanes, weights)
            part.top = i + lowest_bit(wanted)
            part.at_top = lanes[part.top - i]
            weights = without_lane(weights, part.top - i)
    rest.add(weights)


cdef inline void find_distribution(
    Part* part, const storage* x, const storage* t, Py_ssize_t n, double m, Py_ssize_t ahead
) noexcept nogil:
    """What a stretch contributes of the target, if that is the distribution t; what is `ahead` of it is asked for."""
    cdef Vec[storage] top = Vec[storage](m)
    cdef Sum[storage] cross, rest
    cdef Py_ssize_t i = 0
    while i + vec_lanes(x) <= n:
        if ahead != 0:
            prefetch(<char*> (t + i + ahead), sizeof(storage) * vec_lanes(x))
        add_distribution(part, load(x + i), load(t + i), top, i, &cross, &rest)
        i += vec_lanes(x)
    if i < n:
        add_distribution(part, load_first(x + i, n - i, 0), load_first(t + i, n - i, 0), top, i, &cross, &rest)
    part.rest = rest.value()
    part.cross = cross.value()


cdef void find_far_gaps(
    Part* part, const storage* x, const Target[storage]* target, const Formula* formula, Py_ssize_t start,
    Py_ssize_t n, double m, double temperature
) noexcept nogil:
    """The sums of gaps that no double holds, of logits and a maximum that are still to be divided by `temperature`."""
    cdef Carried[double] cross = Carried[double](0, 0), gaps = cross
    cdef double top = m * FAR_STEP, step = temperature / FAR_STEP, amount
    cdef Py_ssize_t i, c
    if formula.smoothing != 0:
        for c in range(n):
            gaps.add((top - x[c] * FAR_STEP) / step)
    for i in range(n if target.distribution != NULL else target.count):
        c = i if target.distribution != NULL else target.classes[i] - start
        if 0 <= c < n:
            amount = target.distribution[start + c] if target.distribution != NULL else target.amount(i, start + c)
            if amount != 0:
                cross.add(amount * ((top - x[c] * FAR_STEP) / step))
    part.cross, part.gaps, part.far = cross, gaps, True


cdef inline void visit_stretch(
    Part* part, const storage* x, storage* e, const Target[storage]* target, const Formula* formula, Py_ssize_t start,
    Py_ssize_t n, double m, RowUnit[storage] unit, Py_ssize_t ahead
) noexcept nogil:
    """Target and exponentials of the n classes from `start` on, of a row x whose maximum is m."""
    part.clear()
    # All else that is needed of x is read before exp_sum, which may overwrite it.
    if target.distribution != NULL:
        find_distribution(part, x + start, target.distribution + start, n, m, ahead)
    else:
        find_amounts(part, x + start, 1, target, start, n, m)
    if formula.smoothing != 0:
        part.gaps = gap_sum(x + start, n, m)
    if part.cross.sum == INFINITY or part.gaps.sum == INFINITY:
        find_far_gaps(part, x + start, target, formula, start, n, m, 1)
    part.R = exp_sum(x + start, e + start if e != NULL else NULL, n, part.top, unit, ahead)


cdef inline void add_part(Part* row, const Part* part, Py_ssize_t start, double e_top) noexcept nogil:
    """Add what a stretch that begins at the class `start` contributes; stretches come in order."""
    cdef double row_unit = FAR_STEP * FAR_STEP if part.far and not row.far else 1
    cdef double part_unit = FAR_STEP * FAR_STEP if row.far and not part.far else 1
    row.R = row.R + part.R
    row.rest = row.rest + part.rest
    row.cross = row.cross * row_unit + part.cross * part_unit
    row.gaps = row.gaps * row_unit + part.gaps * part_unit
    row.far = row.far or part.far
    if part.top >= 0 and row.top < 0:
        row.top = start + part.top
        row.at_top = part.at_top
    elif part.top >= 0:
        row.R = row.R + Carried[double](e_top, 0)
        row.rest = row.rest + Carried[double](part.at_top, 0)


cdef struct FarRow:
    # What cannot be told from logits that a temperature has made infinite, and that were put within range again.
    Part gaps                # its sums of gaps
    double m                 # the maximum, infinite where no double holds it
    double far_m             # the same in the unit of FAR_STEP
    double label_gap         # to the label


cdef struct Scaling:
    # What makes the gradient of a row's exponentials: factor * (unit * e) + minus * t, when smoothed with offset too,
    # but at the class `top`, if that is not -1, at_top. An offset of 0 would not do: it turns -0.0 into 0.0.
    double factor
    double unit           # 1, or the unit taken out
    bint smoothed
    double offset
    double minus
    Py_ssize_t top
    double at_top
    int steps             # how often all of it is still to be multiplied by SCALE_STEP, too large for the type at once


cdef inline double share_of(double share, double x) noexcept nogil:
    """Their product; 0 for no share, whatever it is of."""
    return share * x if share != 0 else 0


cdef inline double smooth_numbers(
    const Formula* formula, Py_ssize_t n, double mass, double gaps, double* cross, double* rest
) noexcept nogil:
    """What smoothing makes of a row's numbers, whose gaps m - x_j add up to `gaps`; returns the share of each class."""
    cdef double kept = 1 - formula.smoothing, share = share_of(formula.smoothing / n, mass)
    cross[0] = share_of(kept, cross[0]) + share_of(share, gaps)
    rest[0] = share_of(kept, rest[0]) + share * (n - 1)
    return share


cdef inline double log_of_row(const storage* tag, const RowNumbers* rows, int k) noexcept nogil:
    return first(log_over_top(
        tag, Vec[double](rows.R[k]), Vec[double](rows.R_low[k]), Vec[double](rows.over[k]), Vec[double](rows.n0[k])))


cdef void leave_far(RowNumbers* rows, int k, double cross) noexcept nogil:
    """From a sum of gaps in the unit of FAR_STEP, the numbers of row k: in a unit of its own if they must be."""
    cdef double back = 1 / FAR_STEP
    rows.cross[k] = cross * back * back
    if not is_finite(cross) or is_finite(rows.cross[k]):
        return
    rows.cross[k] = cross * back
    while True:
        rows.mass[k] *= FAR_STEP
        rows.unit[k] *= FAR_STEP
        rows.weight[k] *= back
        if is_finite(rows.cross[k]):
            return
        rows.cross[k] = cross


cdef double in_steps(double scale, double weight, double limit, int* steps) noexcept nogil:
    """scale * weight, without as many factors of SCALE_STEP as make it too large."""
    cdef double product = scale * weight
    while steps[0] < MAX_SCALE_STEPS and fabs(product) > limit:
        scale /= SCALE_STEP
        product = scale * weight
        steps[0] += 1
    return product


cdef inline Scaling finish_row(
    const Part* row, const storage* e, const Formula* formula, Py_ssize_t n, double m, RowUnit[storage] unit,
    double e_top, double scale, const FarRow* far, RowNumbers* rows, int k
) noexcept nogil:
    """From all that its stretches contribute, the numbers of row k and, if it has exponentials e, their scaling."""
    cdef double low, rest = row.rest.less(0, &low), cross = row.cross.less(0, &low), mass = rest + row.at_top
    cdef double extra = 0, weight = rows.weight[k], share = 0
    cdef double R = row.R.less(e_top if row.top < 0 else 0, &rows.R_low[k])
    cdef Denominator[storage, double] whole
    cdef Scaling scaling = Scaling(0, 1, formula.smoothing != 0, 0, 0, -1, 0, 0)
    if scaling.smoothed:
        share = smooth_numbers(formula, n, mass, row.gaps.less(0, &low), &cross, &rest)
    rows.R[k] = R
    rows.m[k] = m if far == NULL else far.m
    rows.over[k] = m - unit.shift
    rows.n0[k] = unit.n0
    rows.mass[k] = mass
    rows.cross[k] = cross
    if row.far:
        leave_far(rows, k, cross)
    if e != NULL:
        if formula.z_loss != 0:
            extra = 2 * formula.z_loss * (rows.m[k] + log_of_row(e, rows, k))
            if far != NULL and not is_finite(extra):
                extra = 2 * formula.z_loss * far.far_m / FAR_STEP / FAR_STEP
        mass += extra
        scale = in_steps(scale, weight, largest_scale(e), &scaling.steps)
        scaling.minus = -scale
        if scaling.smoothed:
            scaling.offset = -scale * share
            scaling.minus = -scale * (1 - formula.smoothing)
        whole = Denominator[storage, double](R, rows.R_low[k], e_top)
        scaling.factor = whole.under(scale * mass)
        if row.top >= 0 and R < e_top:
            scaling.top = row.top
            scaling.at_top = scale * ((rest + extra) - mass * whole.under(R))
        if fabs(scaling.factor) < smallest_normal(e):
            # A target of next to no mass: its factor keeps its digits only if the unit is taken out first.
            scaling.unit = 1 / unit_size(e)
            scaling.factor = scale * mass / (whole.sum / unit_size(e))
        elif not fabs(scaling.factor) <= largest_scale(e) and scale == scale and mass == mass:
            # All but zeros become infinite: of the z-loss of logits that are as large as numbers are.
            scaling.factor = largest_scale(e) if (scale < 0) == (mass < 0) else -largest_scale(e)
            scaling.at_top = scaling.factor * largest_number(e)
    return scaling


cdef inline void scale_vector(
    const Scaling* scaling, const storage* e, const storage* t, storage* g, Py_ssize_t count
) noexcept nogil:
    cdef Vec[storage] v = load_first(e, count, 0) * Vec[storage](scaling.factor)
    if scaling.smoothed:
        v = fma(load_first(e, count, 0), Vec[storage](scaling.factor), Vec[storage](scaling.offset))
    if t != NULL:
        v = fma(load_first(t, count, 0), Vec[storage](scaling.minus), v)
    store_first(g, count, v)


cdef inline void scale_stretch(
    const Scaling* scaling, storage* e, const storage* t, storage* g, Py_ssize_t n, bint streaming
) noexcept nogil:
    """g becomes the gradient of exponentials e, but at the top; t may be NULL, e may be g."""
    # Stores that cross a cache line cost twice; where a row starts is chance.
    cdef Py_ssize_t i = line_start(g, n)
    cdef double factor = scaling.factor, offset = scaling.offset, minus = scaling.minus
    cdef bint smoothed = scaling.smoothed
    cdef Block[storage] v
    if scaling.unit != 1:
        multiply(e, scaling.unit, n)
    if i > 0:
        scale_vector(scaling, e, t, g, i)
    while i + block_lanes(e) <= n:
        v = load_block(e + i) * Block[storage](factor)
        if smoothed:
            v = fma(load_block(e + i), Block[storage](factor), Block[storage](offset))
        if t != NULL:
            v = fma(load_block(t + i), Block[storage](minus), v)
        if streaming:
            stream(g + i, v)
        else:
            store(g + i, v)
        i += block_lanes(e)
    while i < n:
        scale_vector(scaling, e + i, t + i if t != NULL else NULL, g + i, min(vec_lanes(e), n - i))
        i += vec_lanes(e)


cdef void multiply(storage* v, double factor, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        v[i] *= <storage> factor


cdef inline void take_amounts(
    storage* g, Py_ssize_t stride, Py_ssize_t n, const Target[storage]* target, double minus
) noexcept nogil:
    """Add `minus` times the amounts of a target to a gradient whose n classes are `stride` apart."""
    cdef Py_ssize_t i, c
    for i in range(target.count):
        c = target.classes[i]
        # All of them were classes when they were checked, but another thread may have changed them since.
        if 0 <= c < n:
            g[c * stride] = <storage> first(fma(
                Vec[storage](target.amount(i, c)), Vec[storage](minus), Vec[storage](g[c * stride])))


cdef inline void set_special(
    const Scaling* scaling, const Target[storage]* target, storage* g, Py_ssize_t n
) noexcept nogil:
    cdef int step
    take_amounts(g, 1, n, target, scaling.minus)
    if scaling.top >= 0:
        g[scaling.top] = <storage> scaling.at_top
    for step in range(scaling.steps):
        multiply(g, SCALE_STEP, n)


cdef inline Py_ssize_t stretch_length(Py_ssize_t n) noexcept nogil:
    """How many classes of a row are added up by themselves, a matter of n alone: in fours, to share them out evenly."""
    cdef Py_ssize_t fours = min((n + 4 * STRETCH - 1) // (4 * STRETCH), MAX_STRETCHES // 4)
    cdef Py_ssize_t length = (n + 4 * fours - 1) // (4 * fours)
    return n if n <= STRETCH else (length + 63) // 64 * 64


cdef inline void visit_row(
    const storage* x, storage* e, const Target[storage]* target, const Formula* formula, storage* g, Py_ssize_t n,
    double scale, bint streaming, Py_ssize_t ahead, const storage* following, const FarRow* far, RowNumbers* rows, int k
) noexcept nogil:
    """Visit one row, which is row k of `rows`; its gradient, times `scale` and its weight, goes to g unless g is NULL.

    The exponentials are kept in e, which may be g or x. Its maximum is in rows.m[k] already; that of the row
    `following`, unless it is NULL, is put into rows.m[k + 1]. Unless `far` is NULL, it has the gaps.
    """
    cdef double m = rows.m[k]
    cdef RowUnit[storage] unit = RowUnit[storage](<storage> m)
    cdef double e_top = first(exp(Vec[storage](m), unit))
    cdef Part parts[2]
    cdef Py_ssize_t start = 0, length = stretch_length(n)
    cdef Scaling scaling
    while start < n:
        visit_stretch(parts + (start > 0), x, e, target, formula, start, min(length, n - start), m, unit, ahead)
        if start > 0:
            add_part(parts, parts + 1, start, e_top)
        start += length
    if far != NULL:
        parts.cross, parts.gaps, parts.far = far.gaps.cross, far.gaps.gaps, True
    scaling = finish_row(parts, e, formula, n, m, unit, e_top, scale, far, rows, k)
    if following != NULL:
        # The factor comes late, and this need not wait for it as the scaling must.
        rows.m[k + 1] = row_max(following, n)
    if g != NULL:
        scale_stretch(&scaling, e, target.distribution, g, n, streaming)
        set_special(&scaling, target, g, n)


cdef struct Products:
    # What `evaluate` tells of each row besides its loss; logarithms, and the class of the largest logit.
    double* log_prob
    double* log_sum_exp
    double* entropy
    int64_t* argmax


cdef inline void set_products(
    const Products* products, Py_ssize_t i, int64_t argmax, bint has_nan, double log, double m, double gap,
    double mean_gap
) noexcept nogil:
    """From log(sum / e_top), the maximum, the gap to it of the label, and the mean one over the row's probabilities."""
    products.argmax[i] = -1 if has_nan else argmax
    products.log_prob[i] = -(log + gap)
    products.log_sum_exp[i] = m if fabs(m) == INFINITY and not has_nan else m + log
    products.entropy[i] = log + mean_gap


cdef void set_no_products(const Products* products, Py_ssize_t i) noexcept nogil:
    products.log_prob[i] = products.log_sum_exp[i] = products.entropy[i] = 0
    products.argmax[i] = -1


cdef void find_products(
    const Products* products, Py_ssize_t i, const storage* x, int64_t label, Py_ssize_t n, const FarRow* far,
    const RowNumbers* rows, int k
) noexcept nogil:
    """Those of row i, of its logits x and the numbers k that came of them; only the gap of the label depends on that."""
    cdef double m = rows.m[k] if far == NULL else row_max(x, n), low, R_low
    cdef double R, log, gap = m - x[label] if far == NULL else far.label_gap
    cdef RowUnit[storage] unit = RowUnit[storage](<storage> m)
    cdef Vec[storage] top = Vec[storage](m), zero = Vec[storage](0), logits, e
    cdef Sum[storage] spread, rest
    cdef Py_ssize_t start = 0, argmax = -1, count
    cdef unsigned int at_top, all_lanes = equal_bits(zero, zero)
    cdef bint has_nan = False
    while start < n:
        count = min(vec_lanes(x), n - start)
        logits = load_first(x + start, count, -INFINITY)
        e = exp(logits, unit)
        has_nan |= equal_bits(logits, logits) != all_lanes
        at_top = equal_bits(logits, top) & ((1 << count) - 1)
        if at_top and argmax < 0:
            argmax = start + lowest_bit(at_top)
        spread.add_gaps(e, logits, top)
        rest.add(without_lane(e, argmax - start))
        start += vec_lanes(x)
    R = rest.value().less(0, &R_low)
    log = first(log_over_top(
        x, Vec[double](R), Vec[double](R_low), Vec[double](m - unit.shift), Vec[double](unit.n0)))
    set_products(
        products, i, argmax, has_nan, log, rows.m[k], gap,
        spread.value().less(0, &low) / (R + first(exp(top, unit))))
