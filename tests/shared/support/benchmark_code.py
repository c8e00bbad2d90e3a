"""The benchmarks' modules that tests share. Their folder does not stay on the path, whoever puts it
there: it holds a `kernels.py`, which transformers would take for a package it knows."""

import sys
from pathlib import Path

_FOLDER = str(Path(__file__).resolve().parents[3] / "benchmarks")

_before = list(sys.path)
sys.path.insert(0, _FOLDER)
try:
    import common
    import exact_mode
    import exactness
    import fake_device
    import gpt2_three_caches
    import host
    import kernel_probes
    import large
    import watched
finally:
    sys.path[:] = _before

__all__ = [
    "common",
    "exact_mode",
    "exactness",
    "fake_device",
    "gpt2_three_caches",
    "host",
    "kernel_probes",
    "large",
    "watched",
]
