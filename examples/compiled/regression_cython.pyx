# cython: language_level=3, boundscheck=False, wraparound=False
"""Softmax regression by stochastic gradient descent, one row at a time, without the GIL."""

from libc.stdint cimport int64_t
from softxent cimport (
    SOFTXENT_FLOAT32, SOFTXENT_GRADIENT, SOFTXENT_OK, SOFTXENT_SUM, softxent_call, softxent_call_for,
    softxent_contiguous, softxent_error_text, softxent_import, softxent_run, softxent_scratch_size,
)

softxent_import()


def train(
    const float[:, ::1] inputs, const int64_t[::1] labels, float[:, ::1] weights, float[::1] bias, float[::1] logits,
    float rate, int epochs
):
    """Change weights (C, D) and bias (C,) by `epochs` passes over the rows; returns the mean loss of the last pass.

    `logits` is room for C numbers: the logits of a row, then the gradient in their place.
    """
    cdef Py_ssize_t n = inputs.shape[0], n_features = inputs.shape[1], n_classes = weights.shape[0], i, c, k
    cdef softxent_call call = softxent_call_for(SOFTXENT_FLOAT32, &logits[0], 1, n_classes)
    cdef double loss = 0, total = 0
    cdef float z
    cdef int _epoch, status = SOFTXENT_OK
    call.result = SOFTXENT_GRADIENT
    call.reduction = SOFTXENT_SUM
    call.grad = softxent_contiguous(&logits[0], n_classes, SOFTXENT_FLOAT32)
    call.labels = &labels[0]
    if softxent_scratch_size(&call) != 0:      # a row that lies as it should needs none
        raise RuntimeError(f"unexpected: {softxent_scratch_size(&call)}")
    with nogil:
        for _epoch in range(epochs):
            total = 0
            for i in range(n):
                for c in range(n_classes):
                    z = bias[c]
                    for k in range(n_features):
                        z += weights[c, k] * inputs[i, k]
                    logits[c] = z
                call.labels = &labels[i]
                status = softxent_run(&call, NULL, 0, &loss)
                if status != SOFTXENT_OK:
                    break
                total += loss
                for c in range(n_classes):
                    bias[c] -= rate * logits[c]
                    for k in range(n_features):
                        weights[c, k] -= rate * logits[c] * inputs[i, k]
            if status != SOFTXENT_OK:
                break
    if status != SOFTXENT_OK:
        raise ValueError(softxent_error_text(status).decode())
    return total / n
