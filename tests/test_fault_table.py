"""The faults of `make mutants`, looked at without a run: none has rotted unnoticed."""

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def faults() -> Any:
    """All of them."""
    tools = str(ROOT / "tools")
    sys.path.insert(0, tools)
    try:
        return importlib.import_module("faults").FAULTS
    finally:
        sys.path.remove(tools)


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
