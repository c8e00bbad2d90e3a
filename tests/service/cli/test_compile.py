"""`quire compile`: what it says, what it takes, and what it refuses in one line."""

from pathlib import Path
from typing import Any

import pytest

from quire.clients import cli
from quire.engine.config import EngineConfig
from quire.engine.errors import CompileError
from quire.engine.startup import compile_for_card
from quire.engine.startup.compile_for_card import Outcome
from quire.service.settings import read_settings


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked for, in place of compiling it."""
    calls: list[tuple[Any, ...]] = []

    def note(config: EngineConfig, gpu: str, folder: Path | None, jobs: int, progress: Any) -> Any:
        calls.append((config, gpu, folder, jobs))
        if folder == Path("full"):
            raise CompileError("not all kernels could be compiled: the disk is full")
        progress(1.0)
        return Outcome(70, folder is not None, 12.34, folder or Path("/cache"))

    monkeypatch.setattr(compile_for_card, "compile_for_card", note)
    return calls


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as left:
        cli.main(["compile", *words])
    printed = capsys.readouterr()
    return int(str(left.value.code)), printed.out, printed.err


def test_it_says_what_there_is_and_how_a_server_finds_it(
    capsys: pytest.CaptureFixture[str], asked: list[tuple[Any, ...]]
) -> None:
    words = ("random:tiny", "--gpu", "H200", "--out", "/made", "--jobs", "3", "--block-size", "32")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "kernels 100%\n")
    assert out.splitlines() == [
        "70 kernels for h200 were compiled in 12.3 s, in /made",
        "a server with the same options finds them with TRITON_CACHE_DIR=/made",
    ]
    assert asked == [(EngineConfig(model="random:tiny", block_size=32), "H200", Path("/made"), 3)]
    assert "were there already, in /cache" in run(capsys, "random:tiny", "--gpu", "h200")[1]


def test_it_takes_the_file_that_serve_takes(
    capsys: pytest.CaptureFixture[str], asked: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    file = tmp_path / "quire.toml"
    file.write_text('[engine]\nmodel = "random:tiny"\nnum_blocks = 9\n[service]\nport = 77\n')
    assert run(capsys, "--config", str(file), "--gpu", "h100")[0] == 0
    assert asked[0][0] == read_settings({}, {}, file).engine
    file.write_text('[engine]\nmodel = "random:tiny"\nblocksize = 9\n')
    assert "unknown option" in run(capsys, "--config", str(file), "--gpu", "h100")[2]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("random:tiny",), "gpu is missing: give --gpu, one of a100, "),
        (("random:tiny", "--gpu", "h300"), "gpu = h300: not known; known: a100, a30, "),
        (("random:tiny", "--gpu", "v100"), "device = cuda: NVIDIA V100 has compute capability 7.0"),
        (("random:tiny", "--gpu", "h100", "--jobs", "0"), "jobs = 0: must be 1 to 256"),
        (("random:none", "--gpu", "h100"), ""),
        (("random:tiny", "--gpu", "h100", "--out", "{file}/in"), "{file}/in: cannot be written: "),
    ],
)
def test_a_refusal_is_one_line(
    words: tuple[str, ...],
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    file = tmp_path / "file"
    file.touch()
    code, out, err = run(capsys, *(word.format(file=file) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith(f"quire: {line.format(file=file)}") and err.count("\n") == 1


def test_kernels_that_could_not_be_compiled_end_with_1(
    capsys: pytest.CaptureFixture[str], asked: list[tuple[Any, ...]]
) -> None:
    code, out, err = run(capsys, "random:tiny", "--gpu", "h200", "--out", "full")
    assert (code, out) == (1, "") and asked
    assert err == "quire: not all kernels could be compiled: the disk is full\n"


def test_only_options_that_decide_kernels_have_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "--kv-cache-dtype" in out and "rtx-4090" in out
    for flag in ("--port", "--seed", "--num-blocks", "--device"):
        assert flag not in out
