/* softxent for compiled code: the loss and its derivatives for rows in memory, without Python objects and without the
 * GIL, at the instruction set that this process uses. C11 and C++. docs/compiled.md shows how it is used.
 *
 * Include Python.h first, and call softxent_import() once, with the GIL, in each source file that calls softxent.
 * All other functions need no GIL, keep no state, allocate nothing, and may run in any number of threads at once.
 */
#ifndef SOFTXENT_H
#define SOFTXENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes only if code that was compiled with an older header could go wrong. What is new goes to the end of structs,
 * and enumerations get new values: `size` tells which fields there are. */
#define SOFTXENT_VERSION 1

/* What a call returns. Unless it is SOFTXENT_OK, nothing has been written. */
enum {
    SOFTXENT_OK = 0,
    SOFTXENT_BAD_CALL = 1,      /* `size`, dtype, result, reduction or n_threads is none that this softxent knows */
    SOFTXENT_NULL_POINTER = 2,  /* an array that this result needs is missing */
    SOFTXENT_NOT_NEEDED = 3,    /* an array is given that this result does not have */
    SOFTXENT_BAD_SHAPE = 4,     /* a negative number of rows, or no class */
    SOFTXENT_BAD_LABEL = 5,     /* a label is neither a class nor the ignored label */
    SOFTXENT_BAD_OPTION = 6,    /* an option is not a number in its range */
    SOFTXENT_OVERLAP = 7,       /* a result would overwrite an input that is still needed, or itself */
    SOFTXENT_BAD_SCRATCH = 8    /* the scratch is missing or too small: see softxent_scratch_size */
};

/* The type of logits, distributions and results. */
enum { SOFTXENT_FLOAT32 = 0, SOFTXENT_FLOAT64 = 1 };

/* What is computed. The arrays that each needs and may have, besides the logits:
 *   LOSS         labels or distributions; losses
 *   GRADIENT     labels or distributions, grad; losses
 *   HESSIAN      labels or distributions, grad, hess; losses
 *   SOFTMAX      grad, which gets the probabilities
 *   LOG_SOFTMAX  grad, which gets their logarithms
 *   LOGSUMEXP    losses, which gets it for each row
 */
enum {
    SOFTXENT_LOSS = 0, SOFTXENT_GRADIENT = 1, SOFTXENT_HESSIAN = 2,
    SOFTXENT_SOFTMAX = 3, SOFTXENT_LOG_SOFTMAX = 4, SOFTXENT_LOGSUMEXP = 5
};

/* Over the losses, and so for gradient and Hessian: the sum divided by the number of rows that count (not ignored); the
 * sum; or the sum divided by `normalizer`. */
enum { SOFTXENT_MEAN = 0, SOFTXENT_SUM = 1, SOFTXENT_NORMALIZED = 2 };

/* An array of n_rows x n_classes numbers, anywhere in memory. Strides are in bytes, and may be negative or 0. */
typedef struct softxent_array {
    void *data;
    ptrdiff_t row_stride, class_stride;
} softxent_array;

/* A call: begin with softxent_call_for, which sets every field to what stands in parentheses. */
typedef struct softxent_call {
    size_t size;                /* sizeof(softxent_call), as the caller was compiled */
    int dtype;
    int result;                 /* (SOFTXENT_LOSS) */
    int reduction;              /* (SOFTXENT_MEAN) */
    int n_threads;              /* (1) at most so many; in a forked child of a process with threads, only 1 */
    ptrdiff_t n_rows, n_classes;
    softxent_array logits;
    const int64_t *labels;      /* (NULL) one for each row, side by side */
    softxent_array distributions; /* (none) in place of labels */
    softxent_array grad;        /* (none) may be the logits, which are then overwritten */
    softxent_array hess;        /* (none) the diagonal of each row's Hessian; may be the logits */
    void *losses;               /* (NULL) one for each row, side by side, not divided by anything */
    int has_ignored;            /* (0) 1: rows with the label `ignored` do not count */
    int64_t ignored;            /* (0) */
    double normalizer;          /* (1) */
    double temperature;         /* (1) positive */
    double softcap;             /* (0) positive; 0 for none. It has no Hessian. */
    double label_smoothing;     /* (0) from 0 to 1 */
    double z_loss;              /* (0) not negative */
} softxent_call;

/* What softxent offers, in the capsule softxent._C_API. */
typedef struct softxent_api {
    uint32_t version;           /* SOFTXENT_VERSION */
    uint32_t size;              /* sizeof(softxent_api) */
    const char *level;          /* the instruction set in use, such as "x86_64_v3" */
    int (*run)(const softxent_call *call, void *scratch, size_t scratch_bytes, double *loss);
    ptrdiff_t (*scratch_size)(const softxent_call *call);
    const char *(*error_text)(int code);
} softxent_api;

#if defined(Py_PYTHON_H)

static const softxent_api *softxent_imported = NULL;  /* of this source file */

/* Import softxent. 0, or -1 with a Python exception if it is missing, or does not offer what this header asks for. */
static inline int softxent_import(void)
{
    const softxent_api *api = (const softxent_api *)PyCapsule_Import("softxent._C_API", 0);
    if (api == NULL) {
        return -1;
    }
    if (api->version != SOFTXENT_VERSION || api->size < sizeof(softxent_api)) {
        PyErr_Format(PyExc_ImportError,
                     "this module was compiled for version %u of softxent's C interface, of %u bytes, but the softxent "
                     "that is installed has version %u, of %u bytes: %s",
                     (unsigned)SOFTXENT_VERSION, (unsigned)sizeof(softxent_api), (unsigned)api->version,
                     (unsigned)api->size,
                     api->version > SOFTXENT_VERSION ? "compile the module again" : "install a later softxent");
        return -1;
    }
    softxent_imported = api;
    return 0;
}

/* Do a call. Returns SOFTXENT_OK, or why not; then nothing has been written.
 *
 * `loss`, unless NULL, gets the reduced loss; 0 if the result has none. `scratch` is memory for this call alone, of any
 * alignment, that has at least softxent_scratch_size(call) bytes; NULL if that is 0. */
static inline int softxent_run(const softxent_call *call, void *scratch, size_t scratch_bytes, double *loss)
{
    return softxent_imported->run(call, scratch, scratch_bytes, loss);
}

/* How many bytes of scratch a call needs, often 0. If the call cannot be done, minus the error code.
 *
 * It depends on dtype, result, shape, strides, alignment, options and n_threads, and not on what the arrays hold. */
static inline ptrdiff_t softxent_scratch_size(const softxent_call *call)
{
    return softxent_imported->scratch_size(call);
}

/* What an error code means, in English. */
static inline const char *softxent_error_text(int code)
{
    return softxent_imported->error_text(code);
}

/* The instruction set in use. */
static inline const char *softxent_level(void)
{
    return softxent_imported->level;
}

#endif /* Py_PYTHON_H */

/* Rows of C numbers that lie one after the other. */
static inline softxent_array softxent_contiguous(void *data, ptrdiff_t n_classes, int dtype)
{
    ptrdiff_t itemsize = dtype == SOFTXENT_FLOAT64 ? (ptrdiff_t)sizeof(double) : (ptrdiff_t)sizeof(float);
    softxent_array array;
    array.data = data;
    array.row_stride = n_classes * itemsize;
    array.class_stride = itemsize;
    return array;
}

/* A call for logits whose rows lie one after the other; all else is as by default. The logits are written to only if
 * they are also given as a result. */
static inline softxent_call softxent_call_for(int dtype, const void *logits, ptrdiff_t n_rows, ptrdiff_t n_classes)
{
    static const softxent_array none = {NULL, 0, 0};
    softxent_call call;
    call.size = sizeof call;
    call.dtype = dtype;
    call.result = SOFTXENT_LOSS;
    call.reduction = SOFTXENT_MEAN;
    call.n_threads = 1;
    call.n_rows = n_rows;
    call.n_classes = n_classes;
    call.logits = softxent_contiguous((void *)(uintptr_t)logits, n_classes, dtype);
    call.labels = NULL;
    call.distributions = none;
    call.grad = none;
    call.hess = none;
    call.losses = NULL;
    call.has_ignored = 0;
    call.ignored = 0;
    call.normalizer = 1;
    call.temperature = 1;
    call.softcap = 0;
    call.label_smoothing = 0;
    call.z_loss = 0;
    return call;
}

#ifdef __cplusplus
}
#endif

#endif /* SOFTXENT_H */
