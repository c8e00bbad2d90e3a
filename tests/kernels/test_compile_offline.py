"""The hot kernels compile for sm_90 here, without a spill and within its shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("only", ["decode D128 G2", "prefill D128 G2 block 64", "rope D128"])
def test_hot_attention_kernels_do_not_spill(only: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    rows = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "tools" / "compile_offline.py"), "--hot"]
    run = subprocess.run(
        [*command, "--only", only, "--json", str(rows)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(rows.read_text())
    assert found
    assert all(row["registers"] > 0 for row in found)
    if "prefill" in only:
        assert any(row["wgmma"] > 0 for row in found)
