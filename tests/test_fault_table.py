"""The faults of `make mutants`, looked at without a run: none has rotted unnoticed."""

import ast
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> Any:
    """A module of tools/."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def faults() -> Any:
    """All of them."""
    return tool("faults").FAULTS


def test_each_fits_in_exactly_one_place(faults: Any) -> None:
    texts = {fault.file: (ROOT / fault.file).read_text(encoding="utf-8") for fault in faults}
    unfit = [fault.name for fault in faults if texts[fault.file].count(fault.old) != 1]
    assert not unfit
    assert [fault.name for fault in faults if fault.old == fault.new] == []


def test_each_has_a_name_of_its_own_and_tests_that_are_there(faults: Any) -> None:
    names = [fault.name for fault in faults]
    assert sorted(names) == sorted(set(names))
    wanted = {test for fault in faults for test in fault.tests}
    defined: dict[str, set[str]] = {}
    for file in {test.split("::")[0] for test in wanted}:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    missing = [
        test
        for test in wanted
        for file, _, name in [test.partition("::")]
        if name and name.split("[")[0].rpartition("::")[2] not in defined[file]
    ]
    assert not missing


SUMMARY = "FAILED tests/test_it.py::test_it - AssertionError\n"


@pytest.mark.parametrize(
    ("code", "output", "caught"),
    [
        (1, SUMMARY, "tests/test_it.py::test_it"),
        (-11, SUMMARY, "tests/test_it.py::test_it"),
        (-11, "", ""),
        (2, SUMMARY, ""),
        (0, "1 passed", ""),
    ],
)
def test_a_fault_is_caught_by_a_test_that_fails_though_its_process_crashes_then(
    code: int, output: str, caught: str, tmp_path: Path
) -> None:
    """Threads of what a fault lets begin may still be at work when the interpreter ends."""
    mutants = tool("mutants")
    file = tmp_path / "it.py"
    file.write_text("old")
    copy = SimpleNamespace(
        file=lambda name: tmp_path / name, run=lambda *_: SimpleNamespace(code=code, output=output)
    )
    verdict = mutants.judge(copy, mutants.Fault("it", "it.py", "old", "new", ("t",)), 1.0)
    assert (verdict.good, verdict.why if caught else "") == (bool(caught), caught)
    assert file.read_text() == "old"
