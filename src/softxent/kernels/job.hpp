// All that a kernel is told of a call, and what a level offers: numbers and pointers, no Python object, no lanes.
//
// call/ fills in a Job once, and hands it to the table of functions of the level that this process uses. Every field
// has a default here, which stays if the call does not use the field.
#pragma once

#include <cstddef>
#include <cstdint>

namespace softxent {

// The dtypes that elements may have; kernels/vec/elements.hpp reads and writes them.
enum ElementType : int {
    NO_ELEMENT, BOOLEAN, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT16, BFLOAT16, FLOAT32, FLOAT64,
    LONG_DOUBLE, N_ELEMENT_TYPES
};
constexpr bool is_label(int type) { return INT8 <= type && type <= UINT64; }
constexpr bool is_floating(int type) { return FLOAT16 <= type && type <= FLOAT64; }

inline constexpr int MAX_AXES = 64;                            // NumPy's own limit

// Where the rows of an array are. Row i starts at `data` plus the offset of place i in a C-order walk over all axes but
// the class axis. Neighbouring axes are merged where one stride serves both. At least one axis is left; along the last
// one, rows are `step` bytes apart.
struct Layout {
    char *data = nullptr;
    int element = NO_ELEMENT;
    bool swapped = false;                                      // not in the machine's byte order
    bool packed = false;                                       // aligned, native byte order, classes side by side
    bool stacked = false;                                      // the same, with neighbouring rows side by side
    bool typed = false;                                        // aligned, native byte order, the type computed in
    bool direct = false;                                       // packed and typed: loaded and stored without conversion
    bool loadable = false;                                     // direct, or packed halves that are computed in float
    std::ptrdiff_t panel = -1;                                 // where in scratch its panel is, in bytes; -1: it has none
    int n_axes = 1;
    std::ptrdiff_t class_stride = 0, length = 1, step = 0;     // in bytes; `length` is that of the last axis
    std::ptrdiff_t shape[MAX_AXES], strides[MAX_AXES];         // only the first n_axes are set
};

// What a call is asked for, besides the loss: what the last sweep makes of a row. row/results.hpp has a struct for each.
// LOGSUMEXP takes the place of the loss, and there is no last sweep.
// PRODUCT is that of the softmax's Jacobian, or of the Hessian, with a vector. HESSIAN is its diagonal, beside a gradient.
// For a PRODUCT_OF_PROBS the caller has the probabilities; the kernels see a PRODUCT then.
enum Result : int { GRADIENT, SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, PRODUCT, HESSIAN, PRODUCT_OF_PROBS };

// The form of the targets: a class for each row, an amount for every class, or amounts for some classes. Where there is
// none, the class with the largest logit stands for the label.
enum TargetKind : int { LABELS, DISTRIBUTIONS, SPARSE, NO_TARGET };

// What becomes of the logits before the softmax is taken.
struct Transform {
    double temperature = 1;
    double cap = 0;                                            // of softcap; 0 for none
};

// The share of each target that smoothing spreads over all classes, and the weight of lse^2 in the loss. If the target is
// a label and classes have weights, smoothing gives each class its weight's part of the share; the kernels find the sum
// weights + weights_low of all weights.
struct Formula {
    double smoothing = 0, z_loss = 0;
    bool weighs = false;
    double weights = 0, weights_low = 0;
};

// Where the results of `evaluate` for each row go, besides the loss: numbers of the type computed in, classes, whether the
// label is the argmax, and whether the row counts (1 or 0). A null argmax means that there are none.
struct Diagnostics {
    void *log_prob = nullptr, *lse = nullptr, *entropy = nullptr, *confidence = nullptr;
    std::int64_t *argmax = nullptr, *rank = nullptr;
    unsigned char *correct = nullptr;
    double *counts = nullptr;
};

// The narrow kernel: the bytes of one class of a group of rows, and of all tiles of a group together, on the stack.
inline constexpr std::ptrdiff_t LANE_BYTES = 128, TILE_BYTES = 65536;
// The middle kernel: the most classes, and the bytes of logits that one group of rows has, or twice as many: see plan.pxi.
inline constexpr std::ptrdiff_t GROUPED_CLASSES = 4096, GROUP_BYTES = 32768;
inline constexpr std::ptrdiff_t MAX_BLOCKS = 512;              // of rows, which the threads share out
inline constexpr std::ptrdiff_t STRETCH = 16384;               // classes of a long row that are added up together
inline constexpr std::ptrdiff_t LOGITS_PER_THREAD = 16384;     // a thread with fewer does not pay (measured)
// Logits: from the first on, they leave the innermost cache; from the second on, all that are near the core; from the third
// on, no cache holds the gradient.
// With SOFTXENT_SMALL_CACHES, tests with small arrays see what is done for large ones.
#if defined(SOFTXENT_SMALL_CACHES)
inline constexpr std::ptrdiff_t PREFETCH_ROWS_FROM = 1, PREFETCH_FROM = 1, STREAM_FROM = 1;
#else
inline constexpr std::ptrdiff_t PREFETCH_ROWS_FROM = 8192, PREFETCH_FROM = 262144, STREAM_FROM = 4194304;
#endif
inline constexpr std::ptrdiff_t CACHE_LINE = 64;               // bytes
inline constexpr std::ptrdiff_t PANEL_WIDTH = 512;             // bytes of one class of the rows in a panel, at most

// The rows of scratch that a thread gets, as many from the first on as a call needs: logits or exponentials; a
// distribution, or a target that is built; slopes; the allowed classes as bytes, if they are not side by side; a vector,
// or the diagonal of a Hessian. The middle kernel has others: the logits of two groups.
enum ScratchRow : int { LOGITS_ROW, TARGET_ROW, SLOPE_ROW, ALLOWED_ROW, VECTOR_ROW, HESSIAN_ROW = VECTOR_ROW };

// mantissa * 2^exponent, a number that may be too large or too small for a double.
struct Scale {
    double mantissa = 1;
    int exponent = 0;
};

struct Job {
    std::ptrdiff_t n_rows = 0, n_classes = 0;
    Result result = GRADIENT;
    bool in_double = false;                                    // computed in double, else in float
    Layout logits;
    TargetKind kind = LABELS;
    Layout targets;                                            // labels, distributions, or indices of sparse targets
    Layout probs;                                              // the amounts of sparse targets
    std::ptrdiff_t n_entries = 1;                              // of each row's target; 0 for a distribution
    Layout grad;                                               // or another result with a number for each class
    bool has_grad = false;
    bool has_probs = false;                                    // `logits` are probabilities
    Layout vectors;                                            // of a PRODUCT, one for each row
    Layout hess;                                               // where the diagonal of a HESSIAN goes
    bool grad_is_input = false;                                // in its memory is an input that the last sweep needs
    Layout sample_weight;
    bool has_sample_weight = false;
    const void *class_weight = nullptr;                        // one for each class, of the type computed in
    Layout allowed;                                            // a class is allowed where this is not 0
    bool has_allowed = false;
    bool has_ignored = false;                                  // rows with the label `ignored` do not count
    std::int64_t ignored = 0;
    Formula formula;
    Transform transform;
    double temperature = 1;                                    // that of `transform`, unless `logits` are probabilities
    bool transforms = false;                                   // logits are transformed before the softmax
    bool has_slope = false;                                    // the derivatives of the logits are kept
    bool keeps_logits = false;                                 // they are needed after the exponentials
    bool may_leave_range = false;                              // the temperature may make a finite logit infinite
    bool masks_target = false;                                 // it is built, and 0 where a class is not allowed
    bool builds_target = false;                                // each row's target is built in full: build_target
    double built_smoothing = 0;                                // its smoothing; that of `formula` is 0 then
    bool mean = false, has_normalizer = false;
    double normalizer = 1;
    double hess_factor = 1;                                    // the diagonal of a HESSIAN is multiplied by it
    double class_unit = 0;                                     // class weights were divided by it; 0: none was chosen
    float *losses32 = nullptr;                                 // of the rows; at most one of the two is given
    double *losses64 = nullptr;
    Diagnostics diagnostics;

    // How the call is done; call/plan.pxi fills this in.
    bool by_lanes = false;                                     // by the narrow kernel, one row to a lane
    int target_tile = 0, slope_tile = 0, kept_tile = 0;        // its tiles after that of the logits; 0 for none
    int second_tile = 0;                                       // of vectors, or of the diagonal of a Hessian
    int staging_tile = 1;                                      // the tile after these, or the rest of their space
    std::ptrdiff_t group_rows = 0;                             // that the narrow or the middle kernel visits at once; 0: the wide one
    bool in_line = false;                                      // groups of the middle kernel may overlap: see row/pipeline.hpp
    bool by_stretches = false;                                 // all threads work on one row after the other
    bool converts_stores = false;                              // gradients are converted as they are stored
    bool streaming = false;                                    // the gradient is stored past the caches
    bool prefetching = false;                                  // the logits of the next rows are prefetched
    int n_threads = 1;
    std::ptrdiff_t rows_per_block = 1;
    std::ptrdiff_t scratch_rows = 0;                           // rows of n_classes numbers that each thread needs
    std::ptrdiff_t panel_rows = 0;                             // rows of a panel; 0: there are none
    std::ptrdiff_t panel_pitch = 0;                            // elements from one row of a panel to the next
    std::ptrdiff_t panels_size = 0;                            // numbers that all panels of a thread take
    std::ptrdiff_t scratch_size = 0;                           // numbers that each thread needs: panels, then rows

    // Found by the kernels from the weights of the rows.
    double unit = 1;                                           // a power of two; the weights are multiplied by it
    Scale scale;                                               // of all gradients, without the weights of rows
    Scale hess_scale;                                          // divided by the temperature, times hess_factor
    bool needs_class_unit = false;                             // nothing was done: class weights need a class_unit
};

// What a level offers. New fields go to the end; the others keep their places.
struct KernelTable {
    static constexpr std::uint32_t VERSION = 2;
    std::uint32_t version, size;
    int (*labels_are_good)(const Job *);
    double (*run)(Job *, void *scratch);                       // the loss; all else is written where the job says
    // For the tests of the bounds that kernels/math states.
    double (*exp_of)(const void *x, double m, void *out, std::ptrdiff_t n, int in_double);
    void (*log1p_of)(const double *u, double *out, std::ptrdiff_t n);
};

}  // namespace softxent
