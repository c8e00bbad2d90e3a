"""Which tests are left out is said by their marks alone; and why one failed, before a crash."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WRITTEN = """
import pytest

def test_plain(): pass

@pytest.mark.long
def test_long(): pass

@pytest.mark.gpu
def test_gpu(): pass
"""


CRASHING = """
import os

def test_fails(): raise ValueError("why it " + "failed")

def test_crashes(): os._exit(3)
"""


def output_of(tests: str, root: Path) -> str:
    """What is said of such tests in a checkout of their own."""
    written = root / "tests" / "gpu" / "test_written.py"
    written.parent.mkdir(parents=True)
    written.write_text(tests)
    shutil.copy(Path(__file__).with_name("conftest.py"), root / "tests")
    (root / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    long\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False).stdout


def test_a_folders_name_marks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout may be called anything."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("TESTS_LONG", raising=False)
    said = output_of(WRITTEN, tmp_path / "long")
    assert said.splitlines()[-1].startswith("1 passed, 2 skipped"), said


def test_why_a_test_failed_is_told_before_the_next_one_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TESTS_AT_ONCE", raising=False)
    assert "why it failed" not in output_of(CRASHING, tmp_path / "silent")
    monkeypatch.setenv("TESTS_AT_ONCE", "1")
    assert "why it failed" in output_of(CRASHING, tmp_path / "told")
