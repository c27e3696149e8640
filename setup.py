"""The C extension, which setup.cfg has no words for: it decodes and crops images. All else is in setup.cfg."""

from setuptools import Extension, setup

FOLDER = "mae_pipe/data/native"
PARTS = ("colour", "crc", "header", "idct", "jpeg", "module", "resample", "resample_avx512", "scratch", "view")

setup(
    ext_modules=[
        Extension(
            "mae_pipe.data._native",
            [f"{FOLDER}/{part}.c" for part in PARTS],
            depends=[f"{FOLDER}/huffman.h", f"{FOLDER}/native.h"],
            extra_compile_args=["-O3", "-g0", "-ffp-contract=off", "-fno-strict-aliasing", "-pthread"],
            extra_link_args=["-pthread", "-lm"],
            py_limited_api=True,
            optional=True,  # without a compiler Pillow does the same work, more slowly
        )
    ]
)
