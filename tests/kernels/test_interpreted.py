"""Every test marked `triton`, under Triton's interpreter, in processes of their own; in the long
run those that are also marked `long`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WINGS = ("experts", "linear")
REST = [str(HERE), *(word for wing in WINGS for word in ("--ignore", str(HERE / wing)))]
WHERE = {**{wing: [str(HERE / wing)] for wing in WINGS}, "others": REST, "all": [str(HERE)]}


@pytest.mark.parametrize("wing", [*WINGS, "others", pytest.param("all", marks=pytest.mark.long)])
def test_triton_kernels_under_the_interpreter(wing: str) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the interpreted run")
    pytest.importorskip("triton")
    which = "triton and not gpu" + (" and long" if wing == "all" else "")
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *WHERE[wing], "-q", "-m", which, "-x"],
        env=os.environ | single | {"TRITON_INTERPRET": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-4000:]
    assert " passed" in run.stdout
