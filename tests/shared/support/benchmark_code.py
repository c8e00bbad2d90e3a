"""The benchmarks' modules that tests share. Their folder does not stay on the path: it holds a
`kernels.py`, which transformers would take for a package it knows."""

import sys
from pathlib import Path

_FOLDER = str(Path(__file__).resolve().parents[3] / "benchmarks")

sys.path.insert(0, _FOLDER)
try:
    import common
    import exact_mode
    import exactness
    import fake_device
    import host
    import kernel_probes
    import watched
finally:
    sys.path.remove(_FOLDER)

__all__ = ["common", "exact_mode", "exactness", "fake_device", "host", "kernel_probes", "watched"]
