"""The file of API keys: what is in it, what is refused, and how changes are taken over."""

import asyncio
from pathlib import Path

import pytest
from support.api_keys import ALICE, BOB, key_file
from support.harness import run
from support.server_process import quire

from quire.engine.errors import ConfigError
from quire.service.security.auth import (
    KeyRing,
    certificate_name,
    make_entry,
    new_key,
    peer_address,
    read_keys,
)
from quire.service.security.reload import WatchedFiles, Watcher


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return key_file(tmp_path)


def test_keys_are_found_by_their_salted_hash(keys: Path) -> None:
    ring = read_keys(keys)
    assert len(ring) == 2
    assert ring.find(ALICE.encode()) == "alice"
    assert ring.find(BOB.encode()) == "bob"
    assert ring.find(ALICE[:-1].encode()) is None
    assert ring.find(b"") is None
    assert ALICE not in keys.read_text()
    assert make_entry("x", ALICE) != make_entry("x", ALICE)


def test_a_key_is_compared_in_constant_time_known_or_not(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(1)
        return a == b

    ring = read_keys(keys)
    monkeypatch.setattr("quire.service.security.keys.hmac.compare_digest", compare)
    for key in (ALICE, BOB, "neither-of-them-at-all"):
        compared.clear()
        ring.find(key.encode())
        assert len(compared) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("alice\n", "line 1"),
        ("\nalice sha256:00:11\n", "line 2"),
        ("a/b sha256:" + "0" * 32 + ":" + "0" * 64, "line 1"),
        ("alice sha256:" + "0" * 33 + ":" + "0" * 64, "line 1"),
        (("alice sha256:" + "0" * 32 + ":" + "0" * 64 + "\n") * 2, "alice comes twice"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_keys(tmp_path / "binary")


@pytest.mark.parametrize("key", ["short", "x" * 513, "with space 0123456789", "ümlaut-0123456789"])
def test_a_key_that_no_header_could_carry_gets_no_entry(key: str) -> None:
    with pytest.raises(ConfigError):
        make_entry("alice", key)


def test_made_keys_differ_and_can_be_used() -> None:
    assert new_key() != new_key()
    make_entry("alice", new_key())


def test_names_of_peers() -> None:
    assert peer_address("ipv4:10.1.2.3:4567") == "ipv4:10.1.2.3"
    assert peer_address("ipv6:%5B::1%5D:4567") == "ipv6:%5B::1%5D"
    assert peer_address("unix:/a/b") == "unix:/a/b"
    assert certificate_name({"x509_common_name": [b"alice"]}) == "alice"
    assert certificate_name({"x509_subject_alternative_name": [b"a.b"]}) == "a.b"
    assert certificate_name({"transport_security_type": [b"ssl"]}) == ""


# ------------------------------------------------------------ reload


def test_a_change_is_taken_over_and_a_bad_one_is_not(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = WatchedFiles("api_keys", [keys], lambda: read_keys(keys))
    before = watched.value
    assert not watched.refresh()
    keys.write_text("nonsense, and longer than before: " + "x" * 400)
    assert not watched.refresh()
    assert watched.value is before
    assert "the old stays in force" in caplog.text and "line 1" in caplog.text
    caplog.clear()
    assert not watched.refresh()
    assert not caplog.text  # said once
    keys.unlink()
    assert not watched.refresh()
    assert watched.value is before
    keys.write_text(make_entry("carol", "carol-key-0123456789") + "\n")
    assert watched.refresh()
    assert watched.value.find(ALICE.encode()) is None
    assert watched.value.find(b"carol-key-0123456789") == "carol"


def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes replaces a mounted secret."""
    for name, key in (("one", ALICE), ("two", BOB)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(make_entry(name, key) + "\n")
    link = tmp_path / "current"
    link.symlink_to("one")
    path = link / "keys"
    watched: WatchedFiles[KeyRing] = WatchedFiles("api_keys", [path], lambda: read_keys(path))
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(link)
    assert watched.refresh()
    assert watched.value.find(BOB.encode()) == "two"


def test_files_are_looked_at_again_and_again() -> None:
    async def test() -> None:
        looked = asyncio.Semaphore(0)
        loop = asyncio.get_running_loop()

        class Files:
            def refresh(self) -> bool:
                loop.call_soon_threadsafe(looked.release)
                return False

        watcher = Watcher(Files(), 0.001)
        watcher.start()
        for _ in range(3):
            await looked.acquire()
        watcher.stop()

    run(test)


# ------------------------------------------------------------ the commands


def test_the_command_makes_entries_that_work(tmp_path: Path) -> None:
    made = quire("hash-key", "alice")
    assert made.returncode == 0
    key = made.stderr.rsplit(": ", 1)[1].strip()
    path = tmp_path / "keys"
    path.write_text(made.stdout)
    assert key not in made.stdout
    assert read_keys(path).find(key.encode()) == "alice"
    given = quire("hash-key", "--stdin", "bob", given=BOB + "\n")
    path.write_text(given.stdout)
    assert read_keys(path).find(BOB.encode()) == "bob"
    assert not given.stderr
    short = quire("hash-key", "--stdin", "bob", given="short\n")
    assert (short.returncode, short.stdout) == (2, "")
    assert len(short.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", [None, "alice plaintext\n"])
def test_a_key_file_at_fault_ends_the_start_with_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    done = quire("serve", "--port", "0", "--api-keys", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "api_keys" in done.stderr and str(path) in done.stderr
