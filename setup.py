"""The compiled axial CNN, once for each instruction set; all else about the installation stands in pyproject.toml.

Where a build fails (no compiler, another processor) the installation goes on without it. The results know nothing of
Python: model/axial_kernel.py loads them.
"""

from setuptools import Extension, setup

INSTRUCTIONS = {"avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"], "avx2": ["-mavx2", "-mfma"]}

setup(
    ext_modules=[
        Extension(
            f"model.axial_{name}",
            sources=["model/axial_kernel.cpp", "model/axial_training.cpp"],
            depends=["model/axial_strip.h"],
            language="c++",
            optional=True,
            extra_compile_args=["-std=c++17", "-O3", "-pthread", *flags],
            extra_link_args=["-pthread"],
        )
        for name, flags in INSTRUCTIONS.items()
    ]
)
