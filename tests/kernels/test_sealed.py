"""Compiled code is taken again only as it was sealed."""

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from quire.kernels.sealed import SEAL, SealedFolder, writable, write_at_once


@pytest.fixture
def kept(tmp_path: Path) -> SealedFolder:
    """One entry of two files."""
    made = SealedFolder(tmp_path)
    with made.making("ONE") as entry:
        (entry / "code").write_bytes(b"ONE")
        (entry / "names").write_text("{}")
    return made


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "seal broken", "seal gone"])
def test_an_entry_is_whole_only_as_it_was_sealed(kept: SealedFolder, damage: str) -> None:
    assert kept.is_whole("ONE")
    entry = kept.folder / "ONE"
    (entry / "more").touch()  # made later, of what is sealed
    assert kept.is_whole("ONE")
    if damage == "changed":
        (entry / "code").write_bytes(b"ONF")
    elif damage == "cut":
        (entry / "code").write_bytes(b"ON")
    elif damage == "gone":
        (entry / "code").unlink()
    elif damage == "seal broken":
        (entry / SEAL).write_text("[1")
    else:
        (entry / SEAL).unlink()
    assert not kept.is_whole("ONE")
    kept.discard("ONE")
    assert not entry.exists()
    kept.discard("ONE")


def test_what_is_made_replaces_what_was_there_and_leaves_nothing_else(kept: SealedFolder) -> None:
    with kept.making("ONE") as entry:
        (entry / "code").write_bytes(b"another")
        assert (kept.folder / "ONE" / "code").read_bytes() == b"ONE"  # until it is whole
    assert kept.is_whole("ONE") and (kept.folder / "ONE" / "code").read_bytes() == b"another"
    with pytest.raises(ZeroDivisionError), kept.making("ONE"):
        raise ZeroDivisionError
    assert kept.is_whole("ONE")
    assert [path.name for path in kept.folder.iterdir()] == ["ONE"]


def test_only_what_nobody_else_may_write_is_ours(kept: SealedFolder) -> None:
    assert kept.is_ours("ONE") and not kept.is_ours("TWO")
    for path in (kept.folder / "ONE" / "code", kept.folder / "ONE"):
        mode = path.stat().st_mode
        path.chmod(mode | 0o020)
        assert not kept.is_ours("ONE")
        path.chmod(mode)
    assert kept.is_ours("ONE")


def test_a_folder_that_cannot_be_written_is_replaced_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with caplog.at_level(logging.WARNING):
        found = writable(in_the_way / "cache", what="kernels", remedy="name another")
    assert found.folder != in_the_way / "cache"
    (found.folder / "probe").write_text("")
    assert f"kernels cannot be kept in {in_the_way}" in caplog.text
    assert "(name another)" in caplog.text
    assert writable(tmp_path / "new", what="kernels").folder == tmp_path / "new"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


NO_FOLDER = Path("/dev/null/cache")
KILLED = """
import os, sys, tempfile
from pathlib import Path
from quire.kernels.sealed import writable
tempfile.tempdir = sys.argv[1]
print(writable(Path("/dev/null/cache"), what="kernels").folder, flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_what_a_killed_process_has_left_is_removed_and_nothing_in_use_is(temporary: Path) -> None:
    def other() -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", KILLED, str(temporary)]
        started = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-3, text=True)
        assert started.stdout is not None
        return started, Path(started.stdout.readline().strip())

    (gone, left), (alive, held) = other(), other()
    gone.communicate()
    assert left.is_dir() and held.is_dir()
    not_ours = temporary / "quire-compiled-of-somebody"  # which has no lock
    not_ours.mkdir()
    link = temporary / "quire-compiled-link"
    link.symlink_to(held)
    mine = writable(NO_FOLDER, what="kernels").folder
    assert not left.exists() and not_ours.is_dir() and held.is_dir()
    again = writable(NO_FOLDER, what="kernels").folder
    assert mine.is_dir() and again.is_dir() and mine != again
    alive.communicate()
    writable(NO_FOLDER, what="kernels")
    assert not held.exists() and mine.is_dir()


def test_two_that_seal_an_entry_at_once_leave_it_whole(
    kept: SealedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containers with one folder, and equal numbers of their processes."""
    replace, others = Path.replace, [kept]

    def between(beside: Path, target: Path) -> Path:
        if others:
            others.pop().seal("ONE")
        return replace(beside, target)

    monkeypatch.setattr(Path, "replace", between)
    kept.seal("ONE")
    assert kept.is_whole("ONE")
    others_seal = kept.folder / "ONE" / f"{SEAL}.1"  # not yet in its place
    others_seal.touch()
    kept.seal("ONE")
    others_seal.unlink()
    assert kept.is_whole("ONE")
    others.append(kept)
    write_at_once(kept.folder / "ONE" / SEAL, "{}")  # the other's is replaced
    assert (kept.folder / "ONE" / SEAL).read_text() == "{}"


def test_what_cannot_be_put_in_its_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_at_once(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("name", ["..", "", ".", "../other", "a/b"])
def test_only_entries_are_thrown_away(kept: SealedFolder, name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of an entry"):
        SealedFolder(kept.folder / "ONE").discard(name)
    assert kept.is_whole("ONE")
