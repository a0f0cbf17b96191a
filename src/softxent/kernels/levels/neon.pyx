# The kernels for NEON of AArch64.
include "level.pxi"
