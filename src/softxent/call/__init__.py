"""From NumPy arrays to a job for the kernels, compiled once. `softxent._dispatch` gives it the kernels of a level."""
