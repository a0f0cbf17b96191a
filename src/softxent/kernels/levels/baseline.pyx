# The kernels for any CPU of the architecture.
include "level.pxi"
