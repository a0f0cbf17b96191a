# The kernels for AVX2, FMA, F16C.
include "level.pxi"
