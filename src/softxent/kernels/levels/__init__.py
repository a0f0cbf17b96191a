"""The kernels, one module per instruction set. `softxent._dispatch` imports the one that this CPU can run."""
