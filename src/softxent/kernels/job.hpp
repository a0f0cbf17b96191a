// What a kernel is told of a call, and what a level offers: plain numbers and pointers, no object of Python, no lanes.
//
// A Job is filled in once, by call/, and handed to the table of functions of the level that this process uses. Every
// field has a value from the start: what a call does not use stays as it is here.
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

// Row i of an array: `data` plus the offset of i in a C-order walk over all axes but that of the classes, neighbouring
// axes merged wherever one stride serves both; there is at least one, the last, along which rows are `step` apart.
struct Layout {
    char *data = nullptr;
    int element = NO_ELEMENT;
    bool swapped = false;                                      // in the byte order that is not the machine's
    bool packed = false;                                       // aligned, in native byte order, a row's side by side
    bool typed = false;                                        // aligned, in native byte order, of the type computed in
    bool direct = false;                                       // packed and typed: loaded and stored as they are
    bool halves = false;                                       // packed, and converted to and from float row by row
    int n_axes = 1;
    std::ptrdiff_t class_stride = 0, length = 1, step = 0;     // length: of the last axis
    std::ptrdiff_t shape[MAX_AXES], strides[MAX_AXES];         // the first n_axes of them
};

// What the targets are: the class of each row, an amount for every class, or amounts for some.
enum TargetKind : int { LABELS, DISTRIBUTIONS, SPARSE };

// What becomes of the logits before the softmax is taken.
struct Transform {
    double temperature = 1;
    double cap = 0;                                            // 0 for none
};

// What all rows have in common: the share of each target that goes to all classes alike, and the weight of lse^2.
struct Formula {
    double smoothing = 0, z_loss = 0;
};

// Where `evaluate` wants what is known of each row besides its loss; none if argmax is null.
struct Diagnostics {
    double *log_prob = nullptr, *lse = nullptr, *entropy = nullptr;
    std::int64_t *argmax = nullptr;
};

// A group of rows in lanes, class by class, and the memory that tiles of such groups take on the stack.
inline constexpr std::ptrdiff_t LANE_BYTES = 128, TILE_BYTES = 65536;
inline constexpr std::ptrdiff_t MAX_BLOCKS = 512;              // that rows are shared out in
inline constexpr std::ptrdiff_t STRETCH = 16384;               // classes that are added up by themselves
inline constexpr std::ptrdiff_t LOGITS_PER_THREAD = 16384;     // less is not worth waking a thread for (measured)

struct Job {
    std::ptrdiff_t n_rows = 0, n_classes = 0;
    bool in_double = false;                                    // what is computed in, else float
    Layout logits;
    TargetKind kind = LABELS;
    Layout targets;                                            // labels, distributions, or the classes of sparse targets
    Layout probs;                                              // the amounts of sparse targets
    std::ptrdiff_t n_entries = 1;                              // of each row's target: 0 of a distribution
    Layout grad;
    bool has_grad = false;
    Layout sample_weight;
    bool has_sample_weight = false;
    const void *class_weight = nullptr;                        // a number of the type computed in for each class
    Layout allowed;                                            // classes: those where it is not 0
    bool has_allowed = false;
    bool has_ignored = false;                                  // rows with the label `ignored` do not count
    std::int64_t ignored = 0;
    Formula formula;
    Transform transform;
    bool transforms = false;                                   // the softmax's logits are made of those given,
    bool has_slope = false;                                    // and not all with the same derivative,
    bool may_leave_range = false;                              // and a finite one may become infinite
    bool builds_target = false;                                // weights, smoothing and allowed classes enter a target
    double built_smoothing = 0;                                // of its own, with this smoothing; formula's is 0 then
    bool mean = false, has_normalizer = false;
    double normalizer = 1;
    double class_unit = 1;                                     // class weights were divided by it
    float *losses32 = nullptr;                                 // of the rows; at most one of the two is given
    double *losses64 = nullptr;
    Diagnostics diagnostics;

    // How it is done: call/plan.pxi.
    bool by_lanes = false;                                     // by the narrow kernel, a row to a lane
    bool by_stretches = false;                                 // all threads work on one row after the other
    bool streaming = false;                                    // the gradient is stored past the caches
    bool prefetching = false;                                  // logits are asked for before they are needed
    int n_threads = 1;
    std::ptrdiff_t rows_per_block = 1;
    std::ptrdiff_t scratch_rows = 0;                           // rows of n_classes numbers that each thread needs

    // Found by the kernels from the weights of the rows.
    double unit = 1;                                           // rows' weights are multiplied by it: their sums are numbers
    double scale = 1;                                          // of the gradient, before the weight of the row
};

// What a level offers. Only ever added to, at the end.
struct KernelTable {
    static constexpr std::uint32_t VERSION = 1;
    std::uint32_t version, size;
    int (*labels_are_good)(const Job *);
    double (*run)(Job *, void *scratch);                       // the loss; all else is written where the job says
    // For the tests of the bounds that kernels/math states.
    double (*exp_of)(const void *x, double m, void *out, std::ptrdiff_t n, int in_double);
    void (*log1p_of)(const double *u, double *out, std::ptrdiff_t n);
};

}  // namespace softxent
