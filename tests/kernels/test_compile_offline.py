"""The hot kernels compile for sm_90 here, without a spill and within its shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_hot_attention_kernels_do_not_spill(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    rows = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "tools" / "compile_offline.py"), "--hot"]
    run = subprocess.run(
        [*command, "--only", "D128 G2", "--json", str(rows)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(rows.read_text())
    assert {row["case"].split()[0] for row in found} == {"decode", "rope-decode", "prefill"}
    assert all(row["registers"] > 0 for row in found)
    assert any(row["wgmma"] > 0 for row in found if row["case"].startswith("prefill"))
