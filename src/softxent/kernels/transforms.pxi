# What becomes of logits and targets before a kernel visits them: temperature, capping, classes that are not allowed,
# and targets that class weights or a mask change class by class. A row of the wide kernel and a tile of the narrow one
# are the same to them.


cdef enum:
    MASSES = 8                  # sums of a target's amounts side by side, since each waits long for its last


cdef struct Transform:
    double temperature
    double cap               # 0 for none


cdef void transform_logits(
    const Transform* transform, storage* x, storage* slope, bint masked, Py_ssize_t n
) noexcept nogil:
    """x becomes the logits of the softmax, and `slope`, unless it is NULL, their derivative times the temperature.

    If masked, `slope` holds 0 for the classes that are not allowed, and another number for the others.
    """
    cdef Vec[storage] temperature = Vec[storage](transform.temperature), cap = Vec[storage](transform.cap)
    cdef Vec[storage] inverse_cap = Vec[storage](1 / transform.cap if transform.cap > 0 else 0)
    cdef Vec[storage] zero = Vec[storage](0), v, d, allowed
    cdef Py_ssize_t i = 0, count
    while i < n:
        count = min(vec_lanes(x), n - i)
        v = load_first(x + i, count, 0)
        d = Vec[storage](1)
        if transform.temperature != 1:
            v = v / temperature
        if transform.cap > 0:
            v = cap * tanh(v * inverse_cap, &d)
        if masked:
            allowed = load_first(slope + i, count, 0)
            v = select_equal(allowed, zero, Vec[storage](-INFINITY), v)
            d = select_equal(allowed, zero, zero, d)
        store_first(x + i, count, v)
        if slope != NULL:
            store_first(slope + i, count, d)
        i += vec_lanes(x)


cdef void multiply_by_slope(storage* g, const storage* slope, Py_ssize_t n) noexcept nogil:
    """g becomes the gradient with respect to the logits as given: 0 where a class is not allowed, even if g is NaN."""
    cdef Py_ssize_t i
    for i in range(n):
        g[i] = g[i] * slope[i] if slope[i] != 0 else 0


cdef inline void blend_target(
    const Target[storage]* target, const storage* allowed, double smoothing, storage* t, Py_ssize_t stride, Py_ssize_t n
) noexcept nogil:
    """t becomes the distribution that is meant by a target, smoothed over the allowed classes (NULL: over all).

    Classes are `stride` apart in t, which is the target's own distribution if it has one, and in `allowed`.
    """
    cdef Carried[double] masses[MASSES]
    cdef double low, kept = 1 - smoothing, share = 0, amount
    cdef const storage* w = target.class_weights
    cdef Py_ssize_t n_allowed = n, i, c
    for i in range(MASSES):
        masses[i] = Carried[double](0, 0)
    if target.distribution == NULL:
        for c in range(n):
            t[c * stride] = 0
        for i in range(target.count):
            c = target.classes[i]
            if 0 <= c < n:
                t[c * stride] += target.amounts[i]
                masses[0].add(target.amounts[i])
    elif smoothing != 0:
        for c in range(n):
            masses[c % MASSES].add(t[c * stride])
    if smoothing != 0:
        for i in range(1, MASSES):
            masses[0] = masses[0] + masses[i]
        if allowed != NULL:
            n_allowed = 0
            for c in range(n):
                n_allowed += allowed[c * stride] != 0
        share = smoothing / n_allowed * masses[0].less(0, &low)
        for c in range(n):
            amount = share if allowed == NULL else share * allowed[c * stride]
            t[c * stride] = <storage> (kept * t[c * stride] + amount)
    if w != NULL:
        for c in range(n):
            t[c * stride] *= w[c]
