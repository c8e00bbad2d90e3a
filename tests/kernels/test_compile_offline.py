"""The hot kernels compile here: for sm_90 without a spill, for a small card within its memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def compiled(rows: Path, *options: str) -> list[dict[str, Any]]:
    """What the tool says of the hot kernels, which must be without a fault."""
    pytest.importorskip("triton")
    command = [sys.executable, str(ROOT / "tools" / "compile_offline.py"), "--hot", *options]
    run = subprocess.run(
        [*command, "--json", str(rows)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: list[dict[str, Any]] = json.loads(rows.read_text())
    return found


OFTENEST = (
    "D128 G2 level 1 pdl True",
    "D128 G2 block 64 tokens 8192",
    "D128 G2 split tokens 64 pdl True",
)


@pytest.mark.long
@pytest.mark.parametrize("only", [OFTENEST, ("D128 G2",)])
def test_hot_attention_kernels_do_not_spill(tmp_path: Path, only: tuple[str, ...]) -> None:
    found = compiled(tmp_path / "rows.json", "--only", *only)
    assert {row["case"].split()[0] for row in found} >= {"decode", "rope-decode", "prefill"}
    assert all(row["registers"] > 0 for row in found)
    assert any(row["wgmma"] > 0 for row in found if row["case"].startswith("prefill"))


@pytest.mark.long
@pytest.mark.parametrize("arch", [89, 90, 100])
def test_whole_contexts_have_a_kernel_of_their_own_on_sm_90(tmp_path: Path, arch: int) -> None:
    import triton

    from quire.kernels.support import HOPPER_TRITON

    case = "prefill D128 G2 block 64 tokens 8192"
    found = compiled(tmp_path / "rows.json", "--arch", str(arch), "--only", case)
    taken = arch == 90 and triton.__version__ in HOPPER_TRITON
    whole = "_hopper_prefill_kernel" if taken else "_prefill_kernel"
    assert [row["kernel"] for row in found] == [whole, "_prefill_kernel"]  # and short rows


@pytest.mark.long
def test_products_of_many_rows_do_not_spill_on_sm_90(tmp_path: Path) -> None:
    import triton

    from quire.kernels.support import HOPPER_TRITON

    if triton.__version__ not in HOPPER_TRITON:
        pytest.skip("another Triton than hopper_tall.py is for")
    found = compiled(tmp_path / "rows.json", "--only", "tall")
    assert {row["kernel"] for row in found} == {"_hopper_tall_kernel"} and len(found) == 5
    assert all(row["wgmma"] > 0 and row["tma"] > 0 for row in found)


@pytest.mark.long
def test_hot_kernels_of_experts_do_not_spill(tmp_path: Path) -> None:
    found = compiled(tmp_path / "rows.json", "--only", "experts, 64")
    kernels = {row["kernel"].strip("_").removesuffix("_kernel") for row in found}
    assert kernels >= {"logits", "choice", "count", "place", "grouped", "grouped_fp8", "sum"}
    assert all(row["wgmma"] > 0 for row in found if "grouped" in row["kernel"])


@pytest.mark.long
@pytest.mark.parametrize("arch", ["89", "90", "100", "120"])
def test_kernels_of_experts_fit_every_card(tmp_path: Path, arch: str) -> None:
    found = compiled(tmp_path / "rows.json", "--arch", arch, "--only", "experts")
    assert len({row["case"] for row in found}) >= 6


@pytest.mark.long
@pytest.mark.parametrize(
    ("arch", "limit", "fp8"), [(80, 166_912, set()), (89, 101_376, {"fp8", "fp8-cache"})]
)
def test_what_is_deep_on_a_large_card_fits_a_small_one(
    tmp_path: Path, arch: int, limit: int, fp8: set[str]
) -> None:
    """An RTX 4090 gives a program 99 KiB of shared memory where an H200 gives 227. An A100 knows no
    e4m3: nothing of it is compiled."""
    found = compiled(tmp_path / "rows.json", "--arch", str(arch), "--only", "32 rows")
    kinds = {row["case"].split()[0] for row in found}
    assert {row["arch"] for row in found} == {arch}
    assert kinds >= {"decode", "rope-decode", "linear"} and kinds & {"fp8", "fp8-cache"} == fp8
    assert max(row["shared"] for row in found) <= limit
