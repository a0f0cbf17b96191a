// The OpenMP calls that the kernels use, with one thread where the compiler has no OpenMP.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace softxent {

inline bool has_openmp() {
#ifdef _OPENMP
    return true;
#else
    return false;
#endif
}

// How many threads OpenMP would use here and now: OMP_NUM_THREADS, threadpoolctl and the CPU affinity enter.
inline int openmp_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// How many CPUs this process may run on.
inline int processors() {
#ifdef _OPENMP
    return omp_get_num_procs();
#else
    return 1;
#endif
}

inline int this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace softxent
