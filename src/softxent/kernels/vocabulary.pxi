# The C++ headers, as the kernels see them. Cython deduces the template arguments from the operands.

from libc.math cimport INFINITY, NAN, fabs, frexp, ldexp
from libc.string cimport memcpy, memset

cdef extern from "vec/vec.hpp" namespace "softxent" nogil:
    cdef cppclass Vec[T]:
        Vec()
        Vec(double)
        Vec operator+(Vec)
        Vec operator-(Vec)
        Vec operator*(Vec)

    cdef cppclass Lanes[T]:
        Lanes()
        Lanes(double)
        Lanes operator-(Lanes)

    Py_ssize_t vec_lanes[T](const T*)
    Py_ssize_t lanes_of[T](const T*)
    Py_ssize_t to_line[T](const T*)
    Vec[T] load[T](const T*)
    Lanes[T] load_lanes[T](const T*)
    Vec[double] load_as_double[T](const T*)
    Vec[T] load_first[T](const T*, Py_ssize_t n, double fill)
    Lanes[T] load_lanes_first[T](const T*, Py_ssize_t n, double fill)
    void store[T](T*, Vec[T])
    void store_rounded "softxent::store"[T](T*, Vec[double])
    void store[T](T*, Lanes[T])
    void stream[T](T*, Vec[T])
    void stream[T](T*, Lanes[T])
    void fence_streams()
    void prefetch(const char*, Py_ssize_t n_bytes)
    void stream_row[T](const T* source, T* to, Py_ssize_t n)
    void store_first[T](T*, Py_ssize_t n, Vec[T])
    void store_first[T](T*, Py_ssize_t n, Lanes[T])
    cdef cppclass Tile[T]:
        Tile()
        T* space

    Py_ssize_t in_quarter[T](const T*)
    bint is_short[T](const T*, Py_ssize_t n)
    void short_rows_to_lanes[T](const T* rows, Py_ssize_t n, Py_ssize_t count, T* tile, T* staging)
    void lanes_to_short_rows[T](const T* tile, Py_ssize_t n, Py_ssize_t count, T* rows, T* staging)
    void rows_to_lanes[T](T** at, Py_ssize_t n, T* tile)
    void lanes_to_rows[T](const T* tile, Py_ssize_t n, T** at)
    void columns_to_panel[T](
        const T* columns, Py_ssize_t stride, Py_ssize_t n, T* rows, Py_ssize_t pitch, Py_ssize_t count, T* spare)
    void panel_to_columns[T](
        const T* rows, Py_ssize_t pitch, Py_ssize_t count, Py_ssize_t n, T* columns, Py_ssize_t stride)
    Vec[T] maximum[T](Vec[T], Vec[T])
    Lanes[T] maximum[T](Lanes[T], Lanes[T])
    Vec[T] select_equal[T](Vec[T], Vec[T], Vec[T], Vec[T])
    Lanes[T] select_equal[T](Lanes[T], Lanes[T], Lanes[T], Lanes[T])
    double lane0[T](Vec[T])
    double largest[T](Vec[T])

cdef extern from "math/sums.hpp" namespace "softxent" nogil:
    cdef cppclass Carried[T]:
        Carried()
        Carried(T sum, T lost)
        Carried operator+(Carried)
        Carried operator*(double)
        void add(T)
        T minus(T taken_off, T* rounded)
        T sum, lost

    cdef cppclass Sum[T]:
        Sum()
        void add(Vec[T])
        Carried[double] value()

    bint is_finite(double)
    bint has_room(const Sum[double]&)

cdef extern from "math/exp.hpp" namespace "softxent" nogil:
    cdef cppclass RowUnit[T]:
        T shift
        T n0
        T lowest
        RowUnit()
        RowUnit(T m)

    Vec[T] exp[T](Vec[T], const RowUnit[T]&)
    double unit_size[T](const T*)

cdef extern from "math/log1p.hpp" namespace "softxent" nogil:
    Vec[double] log1p(Vec[double])

cdef extern from "vec/elements.hpp" namespace "softxent" nogil:
    cdef cppclass LabelRange:
        int64_t n_classes
        const int64_t* ignored

    cdef cppclass Element:
        void (*read)(const char*, Py_ssize_t stride, Py_ssize_t n, double* to)
        void (*write)(char*, double)
        bint (*read_labels)(const char*, Py_ssize_t stride, Py_ssize_t n, const LabelRange&, int64_t* to)

    cdef cppclass Converted:
        Converted()
        const Layout* layout
        char* data

    const Element& element_of(const Layout&)
    void read_side_by_side[T](const Layout&, const char*, T*, Py_ssize_t n)
    void write_side_by_side[T](const Layout&, char*, const T*, Py_ssize_t n)

cdef extern from "row/numbers.hpp" namespace "softxent" nogil:
    const double FAR_STEP, LEAST_DIVISOR

    cdef cppclass RowDiagnostics:
        double* R
        double* R_low
        double* label_gap
        double* mean_gap
        int64_t* argmax
        int64_t* rank

    cdef cppclass RowNumbers:
        RowDiagnostics diagnostics
        double* R
        double* R_low
        double* m
        double* m_shifted
        double* n0
        double* mass
        double* cross
        double* weight
        double* unit
        int64_t* top

    cdef cppclass LaneNumbers:
        LaneNumbers()
        LaneNumbers(RowNumbers&, Py_ssize_t k)
        double* R
        double* R_low
        double* m
        double* m_shifted
        double* n0
        double* mass
        double* cross
        double* weight
        RowDiagnostics* diagnostics
        Py_ssize_t k

    cdef cppclass Denominator[T, D]:
        D sum
        Denominator()
        Denominator(D R, D R_low, D e_m)

    double smallest_normal[T](const T*)
    double largest_number[T](const T*)
    double largest_scale[T](const T*)
    int largest_scale_exponent[T](const T*)
    double log1p_rest[T](const T*, double R, double R_low, double m_shifted, double n0)
    double find_log[T](const T*, RowNumbers*, int k)
    void row_losses[T](const T*, const RowNumbers&, int count, double z_loss, bint has_logs, double* losses)

cdef extern from "row/target.hpp" namespace "softxent" nogil:
    cdef cppclass Target[T]:
        Target()
        const T* distribution
        const int64_t* indices
        const T* probs
        Py_ssize_t count
        const T* class_weight
        T amount(Py_ssize_t i, int64_t c)

    cdef cppclass DiagnosticSums:
        DiagnosticSums()
        Carried[double] R, gaps
        Py_ssize_t argmax, ahead

    double row_mass[T](const T* t, Py_ssize_t n)
    Carried[double] carried_sum[T](const T* v, Py_ssize_t n)
    void blend_row[T](
        T* t, Py_ssize_t n, double smoothing, double mass, const unsigned char* allowed, const T* class_weight)

    cdef cppclass RowArrays[T]:
        RowArrays()
        const T* x
        Converted converted_grad
        const T* next_stored
        T* copy
        T* e
        T* grad
        Py_ssize_t n
        const unsigned char* allowed
        DiagnosticSums* diagnostics
        Result result
        const T* vector
        bint has_probs
        T* hess
        const Scale* hess_scale
        Py_ssize_t top
        const T* spread
        Target[T] target

    cdef cppclass RowSums:
        RowSums()
        Carried[double] R
        Carried[double] rest
        Carried[double] cross
        Carried[double] gaps
        bint far
        Py_ssize_t argmax
        double t_at_argmax
        void clear()

cdef extern from "row/finish.hpp" namespace "softxent" nogil:
    double smooth_sums(
        const Formula&, double n, double w_a, double gaps, double* mass, double* cross, double* rest)
    Vec[double] smooth_sums(
        const Formula&, double n, Vec[double] w_a, Vec[double] gaps, Vec[double]* mass, Vec[double]* cross,
        Vec[double]* rest)

    cdef cppclass Factors[D]:
        Factors()
        D factor, offset, minus, grad_at_argmax

    Factors[double] find_factors[T](
        const T*, const Formula&, const Denominator[T, double]& whole, double R, double mass, double rest, double share,
        double scale)

    cdef cppclass Gradient[N]:
        Gradient()
        N factor, offset, minus
        bint smoothed
        Vec[T] of[T](Vec[T] e)
        Vec[T] minus_target[T](Vec[T] grad, Vec[T] t)

cdef extern from "row/sweeps.hpp" namespace "softxent" nogil:
    double row_max[T](const T* x, Py_ssize_t n)
    double row_range[T](const T* x, Py_ssize_t n, double* least)
    double finite_size[T](const T* x, Py_ssize_t n)
    bint are_moderate[T](const T* x, Py_ssize_t n)
    cdef cppclass Taken:
        double m
        bint all_finite

    Taken make_logits[T, X, M](
        const Transform&, const X* x, const M* allowed, T* z, T* slope, Py_ssize_t start, Py_ssize_t stop)
    Taken take_logits[T](
        const Transform&, const Converted& x, const unsigned char* allowed, T* z, T* slope, Py_ssize_t start,
        Py_ssize_t stop)
    void multiply_by_slope[T](T* g, const T* slope, Py_ssize_t n)
    Carried[double] exp_sum[T](
        const T* x, T* e, Py_ssize_t n, Py_ssize_t left_out, RowUnit[T], Py_ssize_t prefetch_distance)
    Carried[double] exp_and_gap_sum[T](
        const T* x, T* e, Py_ssize_t n, Py_ssize_t left_out, RowUnit[T], double m, Carried[double]* gap_total,
        Py_ssize_t prefetch_distance)
    Carried[double] exp_sum_beside[T](
        const T* x, T* e, const T* other, Py_ssize_t n, Py_ssize_t left_out, RowUnit[T], Py_ssize_t prefetch_distance)
    Carried[double] exp_and_diagnostic_sums[T](
        const T* x, Py_ssize_t n, Py_ssize_t left_out, RowUnit[T], double m, Py_ssize_t label, T logit,
        DiagnosticSums*, Py_ssize_t prefetch_distance)
    Carried[double] gap_sum[T](const T* x, Py_ssize_t n, double m)
    void find_weighted_gaps[T](RowSums*, const T* x, const T* w, Py_ssize_t n, double m)
    void build_label_row[T](
        T* t, Py_ssize_t n, Py_ssize_t label, double smoothing, const unsigned char* allowed, const T* class_weight)
    void find_distribution[T](
        RowSums*, const T* x, const T* t, Py_ssize_t n, double m, bint is_masked, Py_ssize_t prefetch_distance)
    void multiply[T](T* v, double factor, Py_ssize_t n)
    void take_gradient[T](
        const Gradient[double]&, double unscale, T* e, const T* t, const unsigned char* allowed, T* g, Py_ssize_t start,
        Py_ssize_t stop, bint streaming)
    void take_converted_gradient[T](
        const Gradient[double]&, double unscale, T* e, const T* t, const unsigned char* allowed, const Converted& g,
        Py_ssize_t start, Py_ssize_t stop)

cdef extern from "row/results.hpp" namespace "softxent" nogil:
    const double PLAIN_LSE_FROM
    Py_ssize_t find_top[T](const T* x, Py_ssize_t n, double m)
    Py_ssize_t count_ahead[T](const T* x, Py_ssize_t n, Py_ssize_t label)

    cdef cppclass Probabilities[N]:
        Probabilities()
        N high, low, at_top
        Lanes[T] of[T](Lanes[T] e)

    cdef cppclass LogProbabilities[N]:
        LogProbabilities()
        N m, high, low
        Lanes[T] of[T](Lanes[T] x)

    void exact_e_m[T](const T*, double m_shifted, double n0, double* high, double* low)
    cdef cppclass Product[N]:
        Product()
        N at_top, shift, factor, pull
        bint pulled
        Lanes[T] of[T](Lanes[T] e, Lanes[T] v)

    cdef cppclass Hessian[N]:
        Hessian()
        N factor, minus_inverse, pull, at_top
        bint pulled
        Lanes[T] of[T](Lanes[T] e)

    Hessian[double] find_hessian[T](
        const T*, const Denominator[T, double]&, double R, double e_m, double mass, double pull)
    void take_gradient_and_hessian[T](
        const Gradient[double]&, const Hessian[double]&, double unscale, T* e, const T* t, const unsigned char* allowed,
        T* g, T* h, Py_ssize_t start, Py_ssize_t stop, bint streaming)
    Carried[double] rest_of[T](const T* e, Py_ssize_t n, Py_ssize_t top)

    cdef cppclass FarNumbers:
        FarNumbers()
        Scale scale, mass, pull, pull_of_mass
        double whole, not_top, quarter_mean

    bint is_far_derivative "softxent::is_far" [T](const T*, double mass, double pull)
    double largest_shift[T](const T*)

    cdef cppclass RowResult:
        RowResult()
        double e_m, e_m_low
        Probabilities[double] probabilities
        LogProbabilities[double] logs
        Product[double] product
        Hessian[double] hessian
        double unscale, after
        Py_ssize_t top
        int steps
        bint is_far
        FarNumbers far

    Product[double] find_product[T](
        const T*, const Denominator[T, double]&, double products, double at_top, double mass, double pull)
    Product[Vec[double]] find_product[T](
        const T*, const Denominator[T, Vec[double]]&, Vec[double] products, Vec[double] at_top, Vec[double] mass,
        Vec[double] pull)
    Carried[double] exp_and_product_sums[T](
        const T* x, T* e, const T* v, Py_ssize_t n, Py_ssize_t left_out, RowUnit[T], double at_top,
        Py_ssize_t prefetch_distance, Carried[double]*)
    bint has_lost_digits[T](const T*, double R, double e_m, Py_ssize_t n)
    Carried[double] product_sum[T](const T* e, const T* v, Py_ssize_t n, double at_top)
    void take_product[T](
        const Product[double]&, const T* e, const T* v, const unsigned char* allowed, T* g, Py_ssize_t start,
        Py_ssize_t stop, bint streaming)
    Probabilities[double] find_probabilities[T](const T*, double R, double R_low, double e_m, double e_m_low)
    LogProbabilities[double] find_log_probabilities[T](
        const T*, double m, double R, double R_low, double m_shifted, double n0)
    void take_result[T, R](
        const R& result, const T* numbers, const unsigned char* allowed, double masked, T* g, Py_ssize_t start,
        Py_ssize_t stop, bint streaming)
    void take_result_in[T, R](
        const R& result, const T* numbers, const unsigned char* allowed, double masked, T* g, Py_ssize_t n)

cdef extern from "row/lanes.hpp" namespace "softxent" nogil:
    cdef cppclass LaneGroup[T]:
        int64_t* label
        int64_t* top
        T* m
        T* e_m
        T* argmax
        double* rest
        T* label_class
        T* label_logit
        T* label_amount
        Gradient[Lanes[T]] gradient
        Lanes[T] own_class, own_grad

    cdef cppclass GroupRows[T]:
        GroupRows()
        const char** given
        char** stored
        T** staged
        T** slope
        T** hess
        const T** vectors
        const unsigned char** allowed
        Target[T]* target
        const T** x
        T** made
        Py_ssize_t count, n, bytes_to_next
        bint prefetching

    cdef cppclass NextRows:
        NextRows()
        NextRows(const char* start, Py_ssize_t step)
        const char* start
        Py_ssize_t step

    cdef cppclass Tiles[T]:
        Tiles()
        T* x
        T* t
        T* slope
        T* kept_logits
        T* vectors
        T* hess
        T* staging

    cdef cppclass SparseRows[T]:
        SparseRows()
        const int64_t** indices
        const T** probs
        Py_ssize_t count, n_classes
        const T* class_weight

    void find_sparse_of_lanes[T](LaneGroup[T]*, SparseRows[T]*, const T* x, const LaneNumbers&)
    void subtract_sparse_of_lanes[T](const LaneGroup[T]&, SparseRows[T]*, T* g)
    void find_pulls[T](const T*, const Formula&, const LaneNumbers&, double* pull)
    void find_label_logits[T](LaneGroup[T]*, const T* x, Py_ssize_t n)
    void find_tops[T](LaneGroup[T]*, const T* x, Py_ssize_t n, bint of_lse, const LaneNumbers&)
    void write_probabilities[T](
        const Probabilities[Lanes[T]]&, const Lanes[T]& top, const T* e, Py_ssize_t n, T** at)
    void write_log_probabilities[T](const LogProbabilities[Lanes[T]]&, const T* x, Py_ssize_t n, T** at)
    void write_products[T](const Product[Lanes[T]]&, const T* e, const T* v, Py_ssize_t n, T** at)
    void write_hessians[T](const Hessian[Lanes[T]]&, const Lanes[T]& own, const T* e, Py_ssize_t n, T** at)
    Lanes[T] class_in_lanes[T](const T*, Py_ssize_t c)
    double smallest_scale[T](const T*)
    void set_m[T](LaneGroup[T]*, const Lanes[T]& m, const LaneNumbers&)
    void find_m[T](LaneGroup[T]*, const T* x, Py_ssize_t n, const LaneNumbers&)
    bint finish_lanes[T](
        LaneGroup[T]*, const Formula&, const double* share, const double* pull, const double* scales,
        bint scales_suffice, const LaneNumbers&)
    void find_grad_at_label[T](LaneGroup[T]*)
    void take_gradients[T](const LaneGroup[T]&, T* e, const T* t, Py_ssize_t n)
    void take_weighted_gradients[T](const LaneGroup[T]&, T* e, const T* class_weight, Py_ssize_t n)
    void write_gradients[T](const LaneGroup[T]&, const T* e, Py_ssize_t n, T** at)
    void find_label_classes[T](LaneGroup[T]*)
    void set_tops[T](LaneGroup[T]*, const LaneNumbers&)
    void find_labels[T](LaneGroup[T]*, const T* class_weight, const LaneNumbers&)
    void take_exponentials_of_lanes[T](
        LaneGroup[T]*, T* x, Py_ssize_t n, const LaneNumbers&, const NextRows&, const NextRows&)
    void take_exponentials_of_lanes[T](
        LaneGroup[T]*, T* x, Py_ssize_t n, const LaneNumbers&, const NextRows&, const NextRows&, const NextRows&)
    void find_probabilities_of_lanes[T](const T*, const LaneNumbers&, Probabilities[Lanes[T]]*)
    void find_log_probabilities_of_lanes[T](const T*, const LaneNumbers&, LogProbabilities[Lanes[T]]*)
    RowUnit[T] unit_of[T](const LaneGroup[T]&, Py_ssize_t lane)
    Gradient[double] of_lane[T](const Gradient[Lanes[T]]&, Py_ssize_t lane)
    Probabilities[double] of_lane[T](const Probabilities[Lanes[T]]&, Py_ssize_t lane)
    LogProbabilities[double] of_lane[T](const LogProbabilities[Lanes[T]]&, Py_ssize_t lane)
    Product[double] of_lane[T](const Product[Lanes[T]]&, Py_ssize_t lane)
    Hessian[double] of_lane[T](const Hessian[Lanes[T]]&, Py_ssize_t lane)
    cdef cppclass LaneResults[T]:
        LaneResults()
        Probabilities[Lanes[T]] probabilities
        LogProbabilities[Lanes[T]] logs
        Product[Lanes[T]] product
        Hessian[Lanes[T]] hessian

    T lane_of[T](const Lanes[T]&, Py_ssize_t lane)
    void take_off[T](const LaneGroup[T]&, const LaneNumbers&)
    void find_rests[T](
        const LaneGroup[T]&, const T* e, Py_ssize_t n, const LaneNumbers&, double* R, double* R_low)
    bint find_hessians_of_lanes[T](
        const LaneGroup[T]&, const Formula&, const double* R, const double* R_low, const double* pulls,
        const double* scales, const LaneNumbers&, Hessian[Lanes[T]]*, Lanes[T]* own)
    void lane_sums[T](const T* v, Py_ssize_t n, const T* left_out, const T* taken_off, double* values, double* rounded)
    void lane_gap_sums[T](const T* x, Py_ssize_t n, const T* m, double* values)
    void lane_weighted_gap_sums[T](const T* x, const T* w, Py_ssize_t n, const T* m, double* values)
    void lane_product_sums[T](const T* e, const T* v, Py_ssize_t n, const T* at_top, double* values)
    void lane_gaps[T](
        const T* x, const T* t, Py_ssize_t n, const T* m, const T* left_out, double* gaps, double* weights,
        double* weights_low)
    void lane_masses[T](const T* t, Py_ssize_t n, double* masses)
    void blend_lanes[T](
        T* t, Py_ssize_t n, double smoothing, const double* masses, const T* allowed, const T* class_weight)
    double largest_size(const double*, Py_ssize_t n)
    bint are_finite(const double* v, Py_ssize_t n)

cdef extern from "row/pipeline.hpp" namespace "softxent" nogil:
    cdef cppclass RowGroup[T]:
        RowGroup()
        GroupRows[T] rows
        LaneGroup[T] group
        LaneResults[T] results
        int64_t* label

    cdef cppclass Pipeline[T]:
        Pipeline()
        bint has_results, may_wait, waits, turn, all_finite
        Py_ssize_t stop, next, n_next
        T* m
        RowGroup[T]* groups
        T* staging
        T* next_staging

    const unsigned char* allowed_of[T](const Job&, const GroupRows[T]&, Py_ssize_t lane)
    void take_results_of_lanes[T](const Job&, const RowGroup[T]&, Py_ssize_t start, Py_ssize_t stop)
    bint need_masks[T](const Job&, const RowGroup[T]&)
    void set_sum_of_row(const LaneNumbers&, Py_ssize_t lane, const Carried[double]& R)
    Py_ssize_t to_next_group[T](const GroupRows[T]&, Py_ssize_t lane)
    void take_exponentials_of_rows[T](const RowGroup[T]&, bint stores, const LaneNumbers&, double* gaps)
    void take_exponentials_in_line[T](
        const Job&, const RowGroup[T]&, bint stores, Pipeline[T]*, const LaneNumbers&, double* gaps)

cdef extern from "row/diagnostics.hpp" namespace "softxent" nogil:
    void find_diagnostics_of[T](
        const LaneGroup[T]&, const T* x, const T* e, Py_ssize_t n, const LaneNumbers&)
    void write_diagnostics_of[T](
        const T*, const RowNumbers&, const int64_t* label, Py_ssize_t count, const Diagnostics&, Py_ssize_t i)

cdef extern from "threads.hpp" namespace "softxent" nogil:
    int this_thread()

ctypedef fused real:
    float
    double

cdef enum:
    MAX_LANES = 32              # of Lanes[float]
    ROWS_AT_ONCE = 8            # lanes of Vec[double]
    MAX_ROWS = 64               # of RowNumbers
