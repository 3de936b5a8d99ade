"""The native extensions only; everything else is declared in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = Path("iems/_native")

extensions = [
    Extension(
        f"iems._native.{source.stem}",
        [str(source)],
        include_dirs=[str(NATIVE)],
        extra_compile_args=["-O3", "-Wno-unused-function"],
        extra_link_args=["-lpthread"],
    )
    for source in sorted(NATIVE.glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["."],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
    )
)
