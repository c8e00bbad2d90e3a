"""Every test marked `triton`, under Triton's interpreter, in a process of their own; in the long
run those that are also marked `long`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WINGS = ("experts", "linear")
NAMES = sorted(place.name for place in Path(__file__).parent.glob("[a-z]*"))
WHERE = {
    **{wing: (f"tests/kernels/{wing}",) for wing in WINGS},
    "others": tuple(f"tests/kernels/{name}" for name in NAMES if name not in WINGS),
    "all": ("tests/kernels",),
}


@pytest.fixture(scope="module")
def interpreted(request: pytest.FixtureRequest) -> "subprocess.CompletedProcess[str]":
    """One run of all wings that are asked for: a process takes seconds to import and collect."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the interpreted run")
    pytest.importorskip("triton")
    items = [item for item in request.session.items if item.path == request.path]
    wings = [item.callspec.params["wing"] for item in items if not item.get_closest_marker("skip")]
    which = "triton and not gpu" + (" and long" if wings == ["all"] else "")
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    places = [place for wing in wings for place in WHERE[wing]]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *places, "-v", "-m", which, "-x", "--disable-warnings"],
        env=os.environ | single | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("wing", [*WINGS, "others", pytest.param("all", marks=pytest.mark.long)])
def test_triton_kernels_under_the_interpreter(
    wing: str, interpreted: "subprocess.CompletedProcess[str]"
) -> None:
    """Each wing fails with any that it ran beside."""
    assert interpreted.returncode == 0, interpreted.stdout[-8000:] + interpreted.stderr[-4000:]
    lines = interpreted.stdout.splitlines()
    assert any(" PASSED " in line for line in lines if line.startswith(WHERE[wing]))
