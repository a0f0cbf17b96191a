# job.hpp, as call/ and the kernels see it.

from libc.stdint cimport int64_t, uint32_t

cdef extern from "job.hpp" namespace "softxent" nogil:
    int NO_ELEMENT, BOOLEAN, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64
    int FLOAT16, BFLOAT16, FLOAT32, FLOAT64, LONG_DOUBLE
    bint is_label(int)
    bint is_floating(int)

    cdef cppclass Layout:
        char* data
        int element
        bint swapped, packed, stacked, typed, direct, loadable
        int n_axes
        Py_ssize_t panel, class_stride, length, step
        Py_ssize_t* shape
        Py_ssize_t* strides

    cdef enum Result:
        GRADIENT, SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, PRODUCT, HESSIAN, PRODUCT_OF_PROBS

    cdef enum TargetKind:
        LABELS, DISTRIBUTIONS, SPARSE, NO_TARGET

    cdef cppclass Transform:
        double temperature, cap

    cdef cppclass Formula:
        double smoothing, z_loss
        bint weighs
        double weights, weights_low

    cdef cppclass Diagnostics:
        void* log_prob
        void* lse
        void* entropy
        void* confidence
        int64_t* argmax
        int64_t* rank
        unsigned char* correct
        double* counts

    const Py_ssize_t LANE_BYTES, TILE_BYTES, GROUPED_CLASSES, GROUP_BYTES, STRETCH, LOGITS_PER_THREAD, CACHE_LINE
    const Py_ssize_t PREFETCH_ROWS_FROM, PREFETCH_FROM, STREAM_FROM
    cdef enum:
        PANEL_WIDTH "static_cast<int>(softxent::PANEL_WIDTH)"
    cdef enum:
        MAX_BLOCKS "static_cast<int>(softxent::MAX_BLOCKS)"
    cdef enum:
        MAX_AXES "softxent::MAX_AXES"

    int LOGITS_ROW, TARGET_ROW, SLOPE_ROW, ALLOWED_ROW, VECTOR_ROW, HESSIAN_ROW

    cdef cppclass Scale:
        Scale()
        double mantissa
        int exponent

    cdef cppclass Job:
        Job()
        Py_ssize_t n_rows, n_classes
        Result result
        bint in_double
        Layout logits
        TargetKind kind
        Layout targets, probs
        Py_ssize_t n_entries
        Layout grad
        bint has_grad, has_probs
        Layout vectors, hess
        bint grad_is_input
        Layout sample_weight
        bint has_sample_weight
        const void* class_weight
        Layout allowed
        bint has_allowed, has_ignored
        int64_t ignored
        Formula formula
        Transform transform
        double temperature
        bint transforms, has_slope, keeps_logits, may_leave_range, builds_target, masks_target
        double built_smoothing
        bint mean, has_normalizer
        double normalizer, hess_factor, class_unit
        float* losses32
        double* losses64
        Diagnostics diagnostics
        bint by_lanes, in_line, by_stretches, converts_stores, streaming, prefetching
        int target_tile, slope_tile, kept_tile, second_tile, staging_tile, n_threads
        Py_ssize_t group_rows, rows_per_block, scratch_rows, panel_rows, panel_pitch, panels_size, scratch_size
        double unit
        Scale scale, hess_scale
        bint needs_class_unit

    cdef cppclass KernelTable:
        uint32_t version, size
        int (*labels_are_good)(const Job*) noexcept nogil
        double (*run)(Job*, void*) noexcept nogil
        double (*exp_of)(const void*, double, void*, Py_ssize_t, int) noexcept nogil
        void (*log1p_of)(const double*, double*, Py_ssize_t) noexcept nogil

    const uint32_t TABLE_VERSION "softxent::KernelTable::VERSION"


cdef inline bint is_made_in_place(const Job* job) noexcept nogil:
    """Whether the middle kernel makes what it stores where the results go."""
    return job.has_grad and job.grad.direct and not job.streaming
