"""Which tests are left out is said by their marks alone."""

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


def test_a_folders_name_marks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout may be called anything."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("TESTS_LONG", raising=False)
    root = tmp_path / "long"
    written = root / "tests" / "gpu" / "test_written.py"
    written.parent.mkdir(parents=True)
    written.write_text(WRITTEN)
    shutil.copy(Path(__file__).with_name("conftest.py"), root / "tests")
    (root / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    long\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].startswith("1 passed, 2 skipped"), done.stdout
