"""Two extension modules that include softxent.h: one in Cython, one in C++ with pybind11. Neither links to softxent."""

import pybind11
from Cython.Build import cythonize
from setuptools import Extension, setup

import softxent

in_cython = Extension("regression_cython", ["regression_cython.pyx"], include_dirs=[softxent.get_include()])
in_cpp = Extension(
    "regression_cpp",
    ["regression_cpp.cpp"],
    language="c++",
    extra_compile_args=["-std=c++17"],
    include_dirs=[softxent.get_include(), pybind11.get_include()],
)

setup(ext_modules=[*cythonize([in_cython], compiler_directives={"freethreading_compatible": True}), in_cpp])
