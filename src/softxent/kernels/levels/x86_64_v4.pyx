# The kernels for AVX-512 F, BW, CD, DQ, VL.
include "level.pxi"
