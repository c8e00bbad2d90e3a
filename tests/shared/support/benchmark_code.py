"""The benchmarks' modules that tests share. Their folder does not stay on the path, whoever puts it
there: it holds a `kernels.py`, which transformers would take for a package it knows, and names that
other tools have too: `engines.py` is one of them, and does not stay among the modules either."""

import sys
from pathlib import Path

_FOLDER = str(Path(__file__).resolve().parents[3] / "benchmarks")

_before, _other = list(sys.path), sys.modules.pop("engines", None)
sys.path.insert(0, _FOLDER)
try:
    import common
    import exact_mode
    import exactness
    import fake_device
    import host
    import kernel_probes
    import large
    import watched
finally:
    sys.path[:] = _before
    sys.modules.pop("engines", None)
    if _other is not None:
        sys.modules["engines"] = _other

__all__ = [
    "common",
    "exact_mode",
    "exactness",
    "fake_device",
    "host",
    "kernel_probes",
    "large",
    "watched",
]
