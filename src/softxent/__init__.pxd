# For Cython modules of other projects: `cimport softxent`. The header has what each name means, and docs/compiled.md an
# example. Add softxent.get_include() to the include path. Plain C types, so that a module keeps working with later
# versions: names are only ever added here.

from libc.stdint cimport int64_t, uint32_t

cdef extern from "softxent.h":
    # With the GIL, once in each module, before anything else.
    int softxent_import() except -1

cdef extern from "softxent.h" nogil:
    enum:
        SOFTXENT_VERSION

    enum:
        SOFTXENT_OK
        SOFTXENT_BAD_CALL
        SOFTXENT_NULL_POINTER
        SOFTXENT_NOT_NEEDED
        SOFTXENT_BAD_SHAPE
        SOFTXENT_BAD_LABEL
        SOFTXENT_BAD_OPTION
        SOFTXENT_OVERLAP
        SOFTXENT_BAD_SCRATCH

    enum:
        SOFTXENT_FLOAT32
        SOFTXENT_FLOAT64

    enum:
        SOFTXENT_LOSS
        SOFTXENT_GRADIENT
        SOFTXENT_HESSIAN
        SOFTXENT_SOFTMAX
        SOFTXENT_LOG_SOFTMAX
        SOFTXENT_LOGSUMEXP

    enum:
        SOFTXENT_MEAN
        SOFTXENT_SUM
        SOFTXENT_NORMALIZED

    ctypedef struct softxent_array:
        void* data
        Py_ssize_t row_stride
        Py_ssize_t class_stride

    ctypedef struct softxent_call:
        size_t size
        int dtype
        int result
        int reduction
        int n_threads
        Py_ssize_t n_rows
        Py_ssize_t n_classes
        softxent_array logits
        const int64_t* labels
        softxent_array distributions
        softxent_array grad
        softxent_array hess
        void* losses
        int has_ignored
        int64_t ignored
        double normalizer
        double temperature
        double softcap
        double label_smoothing
        double z_loss

    ctypedef struct softxent_api:
        uint32_t version
        uint32_t size
        const char* level
        int (*run)(const softxent_call* call, void* scratch, size_t scratch_bytes, double* loss) noexcept
        Py_ssize_t (*scratch_size)(const softxent_call* call) noexcept
        const char* (*error_text)(int code) noexcept

    softxent_call softxent_call_for(int dtype, const void* logits, Py_ssize_t n_rows, Py_ssize_t n_classes) noexcept
    softxent_array softxent_contiguous(void* data, Py_ssize_t n_classes, int dtype) noexcept
    int softxent_run(const softxent_call* call, void* scratch, size_t scratch_bytes, double* loss) noexcept
    Py_ssize_t softxent_scratch_size(const softxent_call* call) noexcept
    const char* softxent_error_text(int code) noexcept
    const char* softxent_level() noexcept
