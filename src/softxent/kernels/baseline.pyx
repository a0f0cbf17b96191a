# The kernels for any CPU of the architecture.
include "kernels.pxi"
