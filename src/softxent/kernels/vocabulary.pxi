# The C++ headers, as the kernels see them. Cython deduces the template arguments from the operands.

from libc.math cimport INFINITY, fabs

cdef extern from "vec.hpp" namespace "softxent" nogil:
    cdef cppclass Vec[T]:
        Vec()
        Vec(double)
        Vec operator*(Vec)

    cdef cppclass Block[T]:
        Block()
        Block(double)
        Block operator*(Block)

    cdef cppclass Sum[T]:
        Sum()
        void add(Vec[T])
        void add_gaps(Vec[T] weights, Vec[T] x, double top)
        double value()
        double value_less(double taken_off, double* rounded)

    cdef cppclass Unit[T]:
        double high
        double low
        Unit()
        Unit(double)

    Py_ssize_t vec_lanes[T](const T*)
    Py_ssize_t line_start[T](const T*, Py_ssize_t n)
    Py_ssize_t block_lanes[T](const T*)
    Vec[T] load[T](const T*)
    Vec[T] load_first[T](const T*, Py_ssize_t n, double fill)
    Block[T] load_block[T](const T*)
    void store[T](T*, Vec[T])
    void store[T](T*, Block[T])
    void store_first[T](T*, Py_ssize_t n, Vec[T])
    Vec[T] fold_sum[T](Block[T])
    Vec[T] fma[T](Vec[T], Vec[T], Vec[T])
    Vec[T] maximum[T](Vec[T], Vec[T])
    Block[T] maximum[T](Block[T], Block[T])
    Vec[T] without_lane[T](Vec[T], Py_ssize_t lane)
    Vec[T] exp[T](Vec[T], const Unit[T]&)
    Block[T] exp[T](Block[T], const Unit[T]&)
    unsigned int equal_bits[T](Vec[T], Vec[T])
    int lowest_bit(unsigned int)
    double first[T](Vec[T])
    double largest[T](Vec[T])
    Vec[T] fold_largest[T](Block[T])
    double rounded_off(double a, double b, double sum)
    double divide[T](const T*, double a, double b, double b_low)
    double smallest_normal[T](const T*)
    double unit_size[T](const T*)
    Vec[double] log1p(Vec[double])
    Vec[double] row_losses(
        Vec[double] R, Vec[double] R_low, Vec[double] high, Vec[double] low, double unit_size, Vec[double] mass,
        Vec[double] cross)

cdef extern from "elements.hpp" namespace "softxent" nogil:
    cdef cppclass Element:
        double (*read)(const char*)
        void (*write)(char*, double)
        long long (*read_label)(const char*)
        void (*read_row)(const char*, float*, Py_ssize_t n)
        void (*write_row)(char*, const float*, Py_ssize_t n)
        bint (*are_labels)(const char*, Py_ssize_t stride, Py_ssize_t n, long long n_classes)

    const char BFLOAT16
    Element element_of(char kind, Py_ssize_t itemsize, bint swapped)

cdef extern from "threads.hpp" namespace "softxent" nogil:
    bint has_openmp()
    int openmp_threads()
    int this_thread()

ctypedef fused storage:
    float
    double
