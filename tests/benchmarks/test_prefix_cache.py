"""The benchmark of the prefix cache runs, and counts what it says it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import programs
from support.patience import PATIENCE

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "prefix_cache.py"
SMALL = ("--device", "cpu", "--num-blocks", "100", "--requests", "3", "--tokens", "4")
BLOCK = 64  # tokens


def run(*words: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    return programs.run([sys.executable, script, *words], timeout=PATIENCE)


@pytest.fixture
def without(tmp_path: Path) -> Path:
    """The benchmark on a machine that has no transformers."""
    script = tmp_path / "without.py"
    script.write_text(
        "import runpy, sys\n"
        "sys.modules['transformers'] = None\n"
        f"sys.argv = [{str(SCRIPT)!r}, *sys.argv[1:]]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    return script


def test_both_tables_and_the_file_without_transformers(tmp_path: Path, without: Path) -> None:
    out = tmp_path / "results.json"
    done = run(*SMALL, "--rounds", "2", "--out", str(out), script=without)
    assert done.returncode == 0, done
    for words in ("prefix cache", "times as fast", "Quire's paged cache"):
        assert words in done.stdout
    assert "transformers" not in done.stdout
    document = json.loads(out.read_text())
    assert {"machine", "versions", "commit", "command"} <= set(document)
    on, off, decode = document["rows"]
    assert (on["workload"], off["workload"]) == ("prefix cache on", "prefix cache off")
    assert on["prompt"] == off["prompt"] == off["computed"] > 0
    assert off["found"] == 0
    shared = on["prompt"] // 3 - 16  # each has 16 tokens of its own
    assert on["found"] == 2 * (shared // BLOCK * BLOCK)
    assert on["computed"] == on["prompt"] - on["found"]
    assert len(on["runs"]) == len(off["runs"]) == len(decode["runs"]) == 2
    assert (decode["engine"], decode["unit"]) == ("quire", "ms/token")


@pytest.mark.long
def test_transformers_is_compared_when_asked_for() -> None:
    done = run(*SMALL, "--rounds", "1", "--transformers")
    assert done.returncode == 0, done
    assert "transformers' cache" in done.stdout and "no cache (transformers)" in done.stdout


def test_without_transformers_only_the_comparison_is_refused(without: Path) -> None:
    refused = run(*SMALL, "--rounds", "1", "--transformers", script=without)
    assert refused.returncode == 2
    assert refused.stderr.startswith("prefix_cache: ") and "transformers" in refused.stderr


def test_too_few_are_refused() -> None:
    for option in ("--requests", "--tokens"):
        done = run(option, "1")
        assert done.returncode == 2
        assert f"argument {option}: 1: must be at least 2" in done.stderr
