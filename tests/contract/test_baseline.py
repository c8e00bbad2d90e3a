"""The contract is held against the committed baseline: additions pass, breakages do not."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO = "proto/quire/v1/inference.proto"
SEED = "  optional uint64 seed = 8;\n"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """tools/check.py."""
    spec = importlib.util.spec_from_file_location("quire_tools_check", ROOT / "tools" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not module.tool("buf").exists():
        pytest.skip("buf is not installed")
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the step reads, to be spoilt."""
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(
        ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def change(tree: Path, old: str, new: str) -> None:
    path = tree / PROTO
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_contract_as_it_is_breaks_nothing(check: ModuleType, tree: Path) -> None:
    check.contract(tree)


def test_a_field_may_be_added(check: ModuleType, tree: Path) -> None:
    change(tree, SEED, SEED + "  // Something new.\n  optional uint32 something_new = 1000;\n")
    check.contract(tree)


@pytest.mark.parametrize(
    "new",
    [
        "  optional uint64 seed = 1000;\n",  # another number
        "  optional uint64 random_seed = 8;\n",  # another name
        "  optional sint64 seed = 8;\n",  # another type
        "  uint64 seed = 8;\n",  # unset and zero no longer differ
        "  reserved 8;\n",  # gone, and its name free
    ],
)
def test_what_was_promised_cannot_change(check: ModuleType, tree: Path, new: str) -> None:
    change(tree, SEED, new)
    with pytest.raises(check.Failed, match="breaking"):
        check.contract(tree)


def test_the_step_is_part_of_the_check(check: ModuleType) -> None:
    assert check.STEPS["contract"] is check.contract
