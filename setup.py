"""The extension modules and their flags; everything else is in pyproject.toml.

Each level in `softxent.kernels.levels` is one two-line .pyx compiled with its own instruction set. All else is compiled
for the baseline of the architecture, since it runs before the CPU has been looked at.
"""

import sys

# pip asks setup.py first. Without this check an old pip looks for minutes for packages that fit an old Python.
if sys.version_info < (3, 11):  # noqa: UP036
    found = ".".join(map(str, sys.version_info[:3]))
    raise SystemExit(
        f"softxent needs Python 3.11 or later, but this is Python {found}: "
        "make a new virtual environment with a later one (python3.11 -m venv --clear .venv)"
    )

import os
import platform
import re
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = Path("src/softxent")
KERNELS = PACKAGE / "kernels"
LEVELS_PACKAGE = "softxent.kernels.levels"

# How to get a compiler and Python's headers, by sys.platform.
TOOLS = {
    "linux": "on Debian or Ubuntu, run apt install g++ python3-dev",
    "darwin": "run xcode-select --install",
    "win32": "install the Visual Studio Build Tools with 'Desktop development with C++'",
}

DIRECTIVES = {
    "language_level": 3,
    "autotestdict": False,
    "cdivision": True,
    "boundscheck": False,
    "wraparound": False,
    "freethreading_compatible": True,
}

# The repository's address, which .github/workflows/wheels.yml knows.
ADDRESS = os.environ.get("SOFTXENT_ADDRESS", "")

# For .ci/sanitize: what the compiler builds in to find wrong accesses and undefined arithmetic, "address,undefined".
SANITIZE = os.environ.get("SOFTXENT_SANITIZE", "")

# The features of each level, every one of which cpu.hpp asks the CPU for.
V3 = ["avx2", "fma", "f16c", "bmi", "bmi2"]
V4 = [*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]
X86_64_LEVELS = {
    "x86_64_v3": ("SOFTXENT_AVX2", [f"-m{feature}" for feature in V3], ["/arch:AVX2"]),
    "x86_64_v4": ("SOFTXENT_AVX512", [f"-m{feature}" for feature in V4], ["/arch:AVX512"]),
}
# The baseline stays the plain C++ there, as on architectures with no table at all: a second opinion for the tests, and
# what SOFTXENT_SIMD=baseline promises everywhere, no fused multiply-add.
AARCH64_LEVELS = {"neon": ("SOFTXENT_NEON", [], [])}
# By platform.machine() in small letters. Not aarch64 on Windows: to MSVC all types of NEON registers are the same type.
LEVELS = {"x86_64": X86_64_LEVELS, "amd64": X86_64_LEVELS, "aarch64": AARCH64_LEVELS}
if sys.platform == "darwin":
    LEVELS["arm64"] = AARCH64_LEVELS

# The Python of python.org asks for both of Apple's architectures at once, but a level is compiled for one of them.
if sys.platform == "darwin":
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")


def remove_other_modules(package: Path, built: set[Path]) -> None:
    """Remove extension modules of this Python from a package's folder, except those that were built."""
    for path in package.rglob("*.*"):
        suffix = "." + path.name.partition(".")[2]  # .cpython-311-x86_64-linux-gnu.so: other Pythons keep theirs
        if suffix in EXTENSION_SUFFIXES and path.resolve() not in built:
            path.unlink()


class BuildWithFlags(build_ext):
    """Build all modules at the same time, with the flags of the compiler that was found, and leave no others behind."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.translating = threading.Lock()
        if self.parallel is None and os.cpu_count() != 1:
            self.parallel = len(self.extensions)  # not the number of CPUs: on two, one would wait for the last module

    def run(self) -> None:
        super().run()
        # An earlier build may have left levels here that this one was not asked for.
        in_place = self.get_output_mapping()
        built = {Path(path).resolve() for path in [*self.get_outputs(), *in_place.values()]}
        remove_other_modules(Path(self.build_lib, "softxent"), built)
        if in_place:
            remove_other_modules(PACKAGE, built)

    def build_extension(self, extension: Extension) -> None:
        # Cython translates one module at a time. Meanwhile the compiler works on the others.
        with self.translating:
            [translated] = cythonize([extension], include_path=[str(KERNELS)], compiler_directives=DIRECTIVES)
        extension.sources, extension.depends = translated.sources, translated.depends
        super().build_extension(extension)

    def build_extensions(self) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        self.check_tools()
        openmp_compile, openmp_link = self.openmp_flags(msvc)
        for extension in self.extensions:
            package, _, level = extension.name.rpartition(".")
            is_kernel = package == LEVELS_PACKAGE
            _, gnu_flags, msvc_flags = levels.get(level, ("", [], []))
            if msvc:
                # From Visual Studio 2022 on, /fp:precise does not contract.
                extension.extra_compile_args = ["/std:c++17", "/O2", "/fp:precise", *msvc_flags]
                if is_kernel:
                    extension.extra_compile_args += ["/DCYTHON_INLINE=__forceinline"]
            else:
                # Never -ffast-math or the like, here or at link: it folds the constants of exp away, and switches
                # denormals off for the whole process. Contraction would make results depend on the level.
                extension.extra_compile_args = [
                    "-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
                    "-fvisibility=hidden", *gnu_flags,
                ]  # fmt: skip
                if is_kernel and not SANITIZE:
                    # What is declared inline belongs inside the loop over rows, however much that grows.
                    extension.extra_compile_args += ["-DCYTHON_INLINE=inline __attribute__((always_inline))"]
                if is_kernel and not SANITIZE and self.is_gcc():
                    # GCC inlines only what is declared inline, so that a change in one place does not change the code
                    # and the speed of others. Its own AVX-512 headers use undefined registers on purpose.
                    extension.extra_compile_args += [
                        "--param=max-inline-insns-single=10000", "--param=large-function-growth=10000",
                        "--param=large-stack-frame-growth=100000", "--param=inline-unit-growth=10000",
                        "-fno-inline-functions", "-fno-inline-small-functions", "-fno-inline-functions-called-once",
                        "-Wno-maybe-uninitialized", "-Wno-uninitialized",
                    ]  # fmt: skip
            if SANITIZE and not msvc:
                flags = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
                # A bool that was never set shows only if its byte is neither 0 nor 1: every byte is 0xFE at first.
                extension.extra_compile_args += [*flags, "-O1", "-g1", "-ftrivial-auto-var-init=pattern"]
                extension.extra_link_args += flags
            extension.extra_compile_args += openmp_compile
            extension.extra_link_args += openmp_link
        super().build_extensions()

    def is_gcc(self) -> bool:
        macros = subprocess.run(
            [*self.compiler.compiler_so_cxx[:1], "-dM", "-E", "-"],
            input="", capture_output=True, text=True, check=False,
        )  # fmt: skip
        return "__GNUC__" in macros.stdout and "__clang__" not in macros.stdout

    def check_tools(self) -> None:
        """End with one sentence if the compiler or Python's headers are missing."""
        if self.trouble("#include <Python.h>"):
            missing = "a working C++ compiler" if self.trouble("#include <vector>") else "Python.h"
            tools = TOOLS.get(sys.platform, "install both a C++ compiler and Python's headers")
            raise SystemExit(f"softxent is compiled when it is installed, and {missing} is missing: {tools}")

    def openmp_flags(self, msvc: bool) -> tuple[list[str], list[str]]:
        """Flags to compile and to link with OpenMP; none where a small program does not build with them."""
        if os.environ.get("SOFTXENT_OPENMP", "1") == "0":
            return [], []
        # Apple's clang hides the option, and has no library of its own for it: the last one is for Homebrew's libomp.
        candidates = [(["/openmp"], [])] if msvc else [(["-fopenmp"], ["-fopenmp"])]
        if sys.platform == "darwin":
            candidates.append((["-Xpreprocessor", "-fopenmp"], ["-lomp"]))
        reasons = []
        for compile_flags, link_flags in candidates:
            reason = self.trouble("#include <omp.h>", "omp_get_max_threads() < 1", compile_flags, link_flags)
            if not reason:
                return compile_flags, link_flags
            reasons.append(reason)
        print(f"softxent: building without OpenMP, on one thread ({reasons[0]})", file=sys.stderr)
        return [], []

    def trouble(self, include: str, result: str = "0", compile_flags: Sequence = (), link_flags: Sequence = ()) -> str:
        """Why a small program does not build; empty if it does."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "small.cpp")
            source.write_text(f"{include}\nint main() {{ return {result}; }}\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[*compile_flags])
                # As the extensions are linked, and with LDFLAGS, which an executable would not be.
                library = str(Path(folder, "small.so"))
                self.compiler.link_shared_object(objects, library, extra_postargs=[*link_flags], target_lang="c++")
            except Exception as error:  # setuptools has no common class for what a compiler may raise
                return str(error) or type(error).__name__
        return ""


def extension(name: str, macros: Sequence[str] = ()) -> Extension:
    headers = PACKAGE.rglob("*.hpp")  # Cython finds what a module includes of .pxi, but not the headers of headers
    return Extension(
        name,
        [f"src/{name.replace('.', '/')}.pyx"],
        language="c++",
        include_dirs=[str(KERNELS), str(PACKAGE / "include"), np.get_include()],
        depends=sorted(map(str, headers)),
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), *((macro, "1") for macro in macros)],
    )


extensions = [extension("softxent._cpu"), extension("softxent.call._call"), extension(f"{LEVELS_PACKAGE}.baseline")]
levels = LEVELS.get(platform.machine().lower(), {})
extensions += [extension(f"{LEVELS_PACKAGE}.{level}", [macro]) for level, (macro, _, _) in levels.items()]

# For quick cycles while developing: SOFTXENT_LEVELS="x86_64_v3 baseline" builds those levels alone.
if wanted := os.environ.get("SOFTXENT_LEVELS", "").split():
    if unknown := set(wanted) - {"baseline", *levels}:
        raise SystemExit(
            f"SOFTXENT_LEVELS: expected some of {', '.join([*levels, 'baseline'])}; got {', '.join(unknown)}"
        )
    unwanted = {f"{LEVELS_PACKAGE}.{level}" for level in {"baseline", *levels} - set(wanted)}
    extensions = [each for each in extensions if each.name not in unwanted]


def links() -> dict[str, str]:
    """Addresses for the page of a package index, if this is a release."""
    if not ADDRESS:
        return {}
    return {
        "Source": ADDRESS,
        "Documentation": f"{ADDRESS}/tree/HEAD/docs",
        "Changelog": f"{ADDRESS}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{ADDRESS}/issues",
    }


def description() -> str:
    """README.md without links to files and pictures beside it: outside the repository they lead nowhere."""
    picture = rf"![\1]({ADDRESS}/raw/HEAD/\2)" if ADDRESS else ""
    absolute = rf"[\1]({ADDRESS}/blob/HEAD/\2)" if ADDRESS else r"\1 (`\2`)"
    text = re.sub(r"!\[([^]]+)\]\((?!https?:)([^)]+)\)", picture, Path("README.md").read_text("utf-8"))
    return re.sub(r"\[([^]]+)\]\((?!https?:)([^)]+)\)", absolute, text)


if __name__ == "__main__":
    setup(
        cmdclass={"build_ext": BuildWithFlags},
        ext_modules=extensions,
        long_description=description(),
        long_description_content_type="text/markdown",
        project_urls=links(),
    )
