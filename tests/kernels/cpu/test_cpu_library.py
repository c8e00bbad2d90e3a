"""The compiled library: made once, trusted only if whole, and done without where it must be."""

import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE

from quire.kernels.cpu import library, ops
from quire.kernels.cpu.library import LEVELS, LibraryUnavailable, load, machine_level

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


# Stands in for a compiler: it gives a library that was made before to whoever asks for one.
COPIER = """#!/bin/sh
case "$*" in *--version) echo "copier 1"; exit;; esac
while [ "$1" != -o ]; do shift; done
exec cp {made} "$2"
"""


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -O0")


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiler for tests of what is kept, which takes no time: its program's path."""
    place = tmp_path_factory.mktemp("copier")
    library._compile("avx2", [shutil.which("cc") or "", "-O0"], place / "made.so")
    program = place / "copier"
    program.write_text(COPIER.format(made=shlex.quote(str(place / "made.so"))))
    program.chmod(0o755)
    return shlex.quote(str(program))


@pytest.fixture
def copied(copier: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CC", copier)
    return copier


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where libraries were made since the test began."""
    made: list[Path] = []
    compile_ = library._compile

    def watched(level: str, command: list[str], target: Path) -> None:
        made.append(target)
        compile_(level, command, target)

    monkeypatch.setattr(library, "_compile", watched)
    return made


@needs_compiler
@pytest.mark.usefixtures("copied")
def test_what_is_whole_is_kept_and_what_is_broken_is_made_again(
    tmp_path: Path, compiled: list[Path]
) -> None:
    load("avx2", tmp_path)
    (entry,) = tmp_path.iterdir()
    kept = entry / "products.so"
    load("avx2", tmp_path)
    assert len(compiled) == 1

    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    for broken in (bytes(content), bytes(content[: len(content) // 2]), b""):
        replaced = tmp_path / "broken"
        replaced.write_bytes(broken)  # not in place: the old one is open
        replaced.replace(kept)
        before = len(compiled)
        load("avx2", tmp_path)
        assert len(compiled) == before + 1
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


@needs_compiler
@pytest.mark.usefixtures("copied")
def test_what_others_may_write_is_not_loaded(tmp_path: Path, compiled: list[Path]) -> None:
    load("avx2", tmp_path)
    (kept,) = tmp_path.glob("*/products.so")
    kept.chmod(0o777)
    load("avx2", tmp_path)
    assert len(compiled) == 2
    assert kept.stat().st_mode & 0o022 == 0


@needs_compiler
def test_other_options_or_sources_are_another_library(
    tmp_path: Path, copied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("avx2", tmp_path)
    monkeypatch.setenv("CC", f"{copied} -g")
    load("avx2", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@needs_compiler
@pytest.mark.usefixtures("copied")
def test_a_directory_that_takes_nothing_is_told_and_done_without(
    tmp_path: Path, compiled: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    assert load("avx2", in_the_way / "cache").quire_product
    assert len(compiled) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "compiled products cannot be kept" in record.getMessage()


@needs_compiler
@pytest.mark.usefixtures("copied")
def test_processes_that_start_at_once_end_with_one_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from quire.kernels.cpu.library import load\n"
        "sys.stdin.read()\n"
        "assert load('avx2', Path(sys.argv[1])).quire_wide_bytes(2, 3) == 128\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(PATIENCE) for process in running] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 1


@needs_compiler
@pytest.mark.parametrize("level", sorted({*LEVELS} - {"avx2"}))
def test_every_level_compiles(level: str, tmp_path: Path) -> None:
    """Those too that this machine could not run; `copier` has the other one."""
    library._compile(level, library._compiler(), tmp_path / "made.so")


def test_without_a_compiler_the_twins_serve_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr("quire.kernels.cpu.ops.machine_level", lambda: "avx2")
    assert ops.own_ops.__wrapped__() is None
    (record,) = caplog.records
    assert "no C compiler: no-such-compiler is not found" in record.getMessage()


@needs_compiler
def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "cc --no-such-option")
    with pytest.raises(LibraryUnavailable, match="no-such-option"):
        load("avx2", tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("fpu avx2 fma", "avx2"),
        ("avx2 fma avx512f avx512bw", "avx512"),
        ("avx2 fma avx512f avx512_bf16", "avx512_bf16"),
        ("avx avx512_bf16", None),
        ("", None),
    ],
)
def test_the_level_is_the_best_that_the_machine_has(
    flags: str, level: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    if level is not None:
        assert machine_level(file) == level
        return
    with pytest.raises(LibraryUnavailable, match="lacks AVX2"):
        machine_level(file)


def test_another_kind_of_machine_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(LibraryUnavailable, match="riscv64"):
        machine_level()


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.sep + "elsewhere")
    assert library.cache_directory() == Path(os.sep + "elsewhere") / "quire"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert library.cache_directory() == Path.home() / ".cache" / "quire"
