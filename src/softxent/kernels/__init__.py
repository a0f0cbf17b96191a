"""The kernels, in Cython and C++: see the head of each file, and CONTRIBUTING.md for the order to read them in."""
