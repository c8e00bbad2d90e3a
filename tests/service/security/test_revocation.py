"""A key that is taken away is shut out, whatever else goes wrong."""

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.harness import run, serving
from support.patience import PATIENCE

from quire.engine.errors import ConfigError
from quire.service.security import reload
from quire.service.security.credentials import watch_keys
from quire.service.security.keys import KeyRing, make_entry
from quire.service.security.reload import GRACE_SECONDS, WatchedFiles, Watcher

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"
LINES = {"alice": make_entry("alice", ALICE), "bob": make_entry("bob", BOB)}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("\n".join(LINES.values()) + "\n")
    return file


@pytest.fixture
def watched(path: Path) -> WatchedFiles[KeyRing]:
    keys = watch_keys(path)
    keys._clock = Clock()
    return keys


def names(keys: WatchedFiles[KeyRing]) -> list[str]:
    found = (keys.value.find(key.encode()) for key in (ALICE, BOB))
    return [name for name in found if name is not None]


def wait_grace(keys: WatchedFiles[KeyRing]) -> None:
    """Two looks, before and after the patience with a file that cannot be read."""
    assert isinstance(keys._clock, Clock)
    keys.refresh()
    keys._clock.now += GRACE_SECONDS
    keys.refresh()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        RuntimeError("nobody thought of it"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_change_is_tried_until_it_was_read(
    path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    fails: list[Exception] = []

    def read() -> str:
        if fails:
            raise fails[0]
        return path.read_text()

    files = WatchedFiles("keys", [path], read)
    path.write_text("changed")
    fails.append(error)
    for _ in range(3):
        assert not files.refresh()
    assert caplog.text.count("the old stays in force") == 1  # each failure is said once
    fails.clear()
    assert files.refresh()
    assert files.value == "changed"


def test_a_key_is_revoked_while_no_descriptor_is_left(path: Path) -> None:
    keys = watch_keys(path)
    path.write_text(LINES["bob"] + "\n")
    taken: list[int] = []
    try:
        while True:
            taken.append(os.dup(0))
            if len(taken) > 1 << 16:
                pytest.skip("this machine has no limit of descriptors")
    except OSError as error:
        assert error.errno == errno.EMFILE
        changed = keys.refresh()
        kept = names(keys)
    finally:
        for descriptor in taken:
            os.close(descriptor)
    assert changed and kept == ["bob"]
    assert not keys.refresh()


@pytest.mark.parametrize("how", ["deleted", "unreadable", "binary", "pipe"])
def test_where_nothing_can_be_read_nobody_may_come_in(
    how: str, path: Path, watched: WatchedFiles[KeyRing], caplog: pytest.LogCaptureFixture
) -> None:
    text = path.read_text()
    path.unlink()
    if how == "unreadable":
        path.mkdir()  # a permission would not keep out root
    elif how == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    elif how == "pipe":
        os.mkfifo(path)  # which nobody writes to: whoever opened it would wait
    watched.refresh()
    assert names(watched) == ["alice", "bob"]  # the moment between two files is not the end
    wait_grace(watched)
    assert names(watched) == []
    assert "nobody may come in" in caplog.text
    if how == "unreadable":
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_text(text)
    assert watched.refresh()
    assert names(watched) == ["alice", "bob"]


def test_a_file_that_is_half_written_revokes_and_lets_nobody_new_in(
    path: Path, watched: WatchedFiles[KeyRing]
) -> None:
    carol = make_entry("carol", "carol-key-0123456789")
    path.write_text(f"{carol}\n{LINES['bob']}\n{LINES['alice'][:40]}")
    wait_grace(watched)
    assert names(watched) == ["bob"]
    assert watched.value.find(b"carol-key-0123456789") is None
    path.write_text(f"{carol}\n{LINES['bob']}\n{LINES['alice']}\n")
    assert watched.refresh()
    assert names(watched) == ["alice", "bob"]
    assert watched.value.find(b"carol-key-0123456789") == "carol"


def test_an_emptied_file_lets_nobody_in_and_says_so(
    path: Path, watched: WatchedFiles[KeyRing], caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("# nobody\n")
    assert watched.refresh()
    assert names(watched) == []
    assert [r.levelno for r in caplog.records if "nobody may come in" in r.getMessage()] == [
        logging.CRITICAL
    ]
    with pytest.raises(ConfigError, match="holds no key"):
        watch_keys(path)  # at the start it is a mistake


def test_a_mounted_secret_whose_links_are_swapped(tmp_path: Path) -> None:
    """Kubernetes: keys -> ..data/keys, ..data -> a directory of a date."""
    for date, who in (("..1", "alice"), ("..2", "bob")):
        (tmp_path / date).mkdir()
        (tmp_path / date / "keys").write_text(LINES[who] + "\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = watch_keys(tmp_path / "keys")
    assert names(keys) == ["alice"]
    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").rename(tmp_path / "..data")
    assert keys.refresh()
    assert names(keys) == ["bob"]


def test_a_change_that_no_time_shows_is_seen(path: Path) -> None:
    """Written within one tick of the file system's clock, and as long as before."""
    path.write_text(LINES["alice"].replace("alice", "anna1") + "\n")
    keys = watch_keys(path)
    before = path.stat()
    path.write_text(LINES["alice"] + "\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    keys._seen = None if keys._seen is None else keys._signature()  # as if no time had changed
    assert keys.refresh()
    assert keys.value.find(ALICE.encode()) == "alice"


def test_files_of_two_moments_are_not_taken_together(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("old")
    two.write_text("old")
    writes: list[Callable[[], int]] = []

    def read() -> tuple[str, str]:
        first = one.read_text()
        if writes:
            writes.pop()()
        return first, two.read_text()

    files = WatchedFiles("pair", [one, two], read)
    one.write_text("newer")

    def both() -> int:
        one.write_text("newest!")
        return two.write_text("newest!")

    writes.append(both)
    assert files.refresh()
    assert files.value == ("newest!", "newest!")


def test_a_pipe_in_the_place_of_a_file_is_no_file_and_holds_up_nobody(path: Path) -> None:
    files = WatchedFiles("keys", [path], path.read_text)
    value = files.value
    path.unlink()
    os.mkfifo(path)
    assert not files.refresh()  # and does not wait for whoever might write into it
    path.unlink()
    path.write_text("new")
    assert files.refresh() and files.value == "new" != value
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a file"):
        WatchedFiles("keys", [path], path.read_text)
    with pytest.raises(ConfigError, match="is not a file"):
        watch_keys(path)


def test_a_callers_fault_ends_no_watching(caplog: pytest.LogCaptureFixture) -> None:
    looked = threading.Semaphore(0)

    class Broken:
        def refresh(self) -> bool:
            looked.release()
            raise ZeroDivisionError("unexpected")

    watcher = Watcher(Broken(), 0.001)
    watcher.start()
    for _ in range(3):
        while not looked.acquire(timeout=0.1):
            assert watcher._thread.is_alive()
    watcher.stop()
    watcher._thread.join(PATIENCE)
    assert not watcher._thread.is_alive()
    assert caplog.text.count("checking files for changes failed") == 1


def test_files_are_read_while_every_thread_of_the_pool_is_taken() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        pool, free, looked = ThreadPoolExecutor(1), threading.Event(), asyncio.Event()
        loop.set_default_executor(pool)
        held = loop.run_in_executor(None, free.wait, PATIENCE)

        class Files:
            def refresh(self) -> bool:
                loop.call_soon_threadsafe(looked.set)
                return False

        watcher = Watcher(Files(), 0.001)
        watcher.start()
        try:
            await looked.wait()
        finally:
            watcher.stop()
            free.set()
            await held

    run(test)


class Slow:
    """Files whose disk hangs."""

    def __init__(self) -> None:
        self.looks = 0
        self.begun, self.free = threading.Semaphore(0), threading.Event()

    def refresh(self) -> bool:
        self.looks += 1
        self.begun.release()
        self.free.wait(PATIENCE)
        return False


def test_looks_that_are_asked_for_while_a_disk_hangs_are_one_look_more() -> None:
    files = Slow()
    watcher = Watcher(files, seconds=3600.0)
    watcher.start()
    watcher.look_now()
    assert files.begun.acquire(timeout=PATIENCE)
    for _ in range(10):
        watcher.look_now()
    files.free.set()
    assert files.begun.acquire(timeout=PATIENCE)
    watcher.stop()
    watcher._thread.join(PATIENCE)
    assert files.looks == 2


def test_a_servers_hangups_take_no_thread_of_the_event_loops(tmp_path: Path) -> None:
    """Ten while one file's disk hangs; a change of another is seen, and the pool is free."""

    async def test() -> None:
        pool = ThreadPoolExecutor(2)
        asyncio.get_running_loop().set_default_executor(pool)
        path = tmp_path / "keys"
        path.write_text(LINES["alice"] + "\n")
        async with serving(api_keys=str(path)) as running:
            hung, other = Slow(), Slow()
            other.free.set()
            running.server._watchers += [Watcher(hung, 3600.0), Watcher(other, 3600.0)]
            for watcher in running.server._watchers[-2:]:
                watcher.start()
            for _ in range(10):
                running.server.read_again()
            assert await asyncio.to_thread(hung.begun.acquire, timeout=PATIENCE)
            assert await asyncio.to_thread(other.begun.acquire, timeout=PATIENCE)
            hung.free.set()

    run(test)


def test_revocation_is_done_within_five_seconds() -> None:
    assert GRACE_SECONDS + 2 * reload.POLL_SECONDS < 5.0
