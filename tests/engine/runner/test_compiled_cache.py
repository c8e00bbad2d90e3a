"""Compiled kernels are taken from the cache only as they were sealed there."""

import json
import logging
from pathlib import Path

import pytest

from quire.engine.runner.compiled_cache import CompiledCache, writable_cache

KEY = "a" * 8


@pytest.fixture
def cache(tmp_path: Path) -> CompiledCache:
    """Two kernels of two files each, sealed and noted under KEY."""
    made = CompiledCache(tmp_path / "home" / "cache")
    for name in ("ONE", "TWO"):
        entry = made.folder / name
        entry.mkdir(parents=True)
        (entry / "kernel.cubin").write_bytes(name.encode())
        (entry / "kernel.json").write_text("{}")
    made.note(KEY, {"ONE", "TWO"})
    return made


def test_what_was_sealed_is_whole(cache: CompiledCache) -> None:
    assert cache.is_whole(KEY)
    assert cache.is_whole(KEY)  # looking changes nothing


def test_another_version_finds_nothing(cache: CompiledCache) -> None:
    assert not cache.is_whole("b" * 8)


@pytest.mark.parametrize("damage", ["changed", "folder gone"])
def test_a_damaged_kernel_is_thrown_away_and_the_others_stay(
    cache: CompiledCache, damage: str
) -> None:
    cubin = cache.folder / "TWO" / "kernel.cubin"
    if damage == "changed":
        cubin.write_bytes(b"TWI")
    else:
        for file in cubin.parent.iterdir():
            file.unlink()
        cubin.parent.rmdir()
    assert not cache.is_whole(KEY)
    assert not cubin.parent.exists()
    assert (cache.folder / "ONE" / "kernel.cubin").exists()


_BROKEN = ("", "{", "[]", "7", '{"a": 1}', '["../other"]', '[".."]', '[""]', '["."]', '[["a"]]')


@pytest.mark.parametrize("text", _BROKEN)
def test_a_broken_list_is_none(cache: CompiledCache, text: str) -> None:
    other = cache.folder.parent / "other"
    other.mkdir(exist_ok=True)
    (cache.folder / f"quire-{KEY}.json").write_text(text)
    assert not cache.is_whole(KEY)
    assert other.exists()  # nothing outside the cache is removed
    assert (cache.folder / "ONE" / "kernel.cubin").exists()


def test_a_folder_that_cannot_be_written_is_replaced_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = writable_cache(tmp_path / "file" / "cache")
    assert found.folder != tmp_path / "file" / "cache"
    (found.folder / "probe").write_text("")
    assert "TRITON_CACHE_DIR" in caplog.text and str(tmp_path) in caplog.text


def test_a_stale_list_stops_no_copy(cache: CompiledCache, tmp_path: Path) -> None:
    """Of kernels that another version has thrown away, or of none: the others are there."""
    gone = [f"GONE{i}" for i in range(50)]  # names are taken in any order
    (cache.folder / "quire-bbbbbbbb.json").write_text(json.dumps(["ONE", *gone]))
    (cache.folder / "quire-cccccccc.json").write_text("{")
    (cache.folder / "ONE").chmod(0o500)  # as in an image
    copy = CompiledCache(tmp_path / "copy")
    copy.folder.mkdir()
    copy.take_from(cache)
    assert copy.is_whole(KEY) and not copy.is_whole("b" * 8)
    assert sorted(path.name for path in copy.folder.glob("*/")) == ["ONE", "TWO"]
    assert (copy.folder / "ONE").stat().st_mode & 0o777 == 0o700
