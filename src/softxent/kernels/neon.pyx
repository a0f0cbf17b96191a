# The kernels for NEON of AArch64.
include "kernels.pxi"
