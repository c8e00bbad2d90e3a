"""A key's line: its options, and how it is found among many."""

import hashlib
import secrets
from pathlib import Path

import pytest

from quire.engine.errors import ConfigError
from quire.service.security import keys as key_files
from quire.service.security.keys import KeyEntry, KeyRing, make_entry, new_key, read_keys

KEY = "some-key-0123456789ab"
LINE = make_entry("alice", KEY)


def foreign(name: str, key: str) -> str:
    """A line as another program makes it: with a salt that is nothing but random."""
    salt = secrets.token_bytes(16)
    return f"{name} sha256:{salt.hex()}:{hashlib.sha256(salt + key.encode()).hexdigest()}"


def entry_of(path: Path, text: str) -> KeyEntry:
    path.write_text(text)
    entry = read_keys(path).entry(KEY.encode())
    assert entry is not None
    return entry


@pytest.mark.parametrize(
    ("options", "operator", "max_priority"),
    [
        ("", False, 0),
        (" operator", True, 0),
        (" max_priority=7", False, 7),
        (" max_priority=-3 operator", True, -3),
        (" operator max_priority=1000", True, 1000),
    ],
)
def test_options_of_a_line(tmp_path: Path, options: str, operator: bool, max_priority: int) -> None:
    entry = entry_of(tmp_path / "keys", LINE + options)
    assert (entry.operator, entry.max_priority) == (operator, max_priority)


@pytest.mark.parametrize(
    "option",
    [
        "admin", "operator=1", "operator operator", "max_priority", "max_priority=",
        "max_priority=1001", "max_priority=-1001", "max_priority=1.5", "max_priority=９",
        "max_priority=1 max_priority=2", "priority=1",
    ],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_refused_with_its_line(
    tmp_path: Path, option: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# keys\n{LINE} {option}\n")
    with pytest.raises(ConfigError, match="line 2") as caught:
        read_keys(path)
    assert str(path) in str(caught.value)


def test_a_key_that_was_pasted_into_a_line_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for text in (f"alice {KEY}", f"{LINE} {KEY}"):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_keys(path)
        assert KEY not in str(caught.value)


def digests(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    made: list[bytes] = []
    digest = key_files._digest

    def counted(salt: bytes, key: bytes) -> bytes:
        made.append(key)
        return digest(salt, key)

    monkeypatch.setattr(key_files, "_digest", counted)
    return made


def test_a_look_up_does_not_grow_with_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [new_key() for _ in range(4000)]
    path = tmp_path / "keys"
    path.write_text("\n".join(make_entry(f"k{i}", key) for i, key in enumerate(given)))
    ring = read_keys(path)
    made = digests(monkeypatch)
    for i, key in enumerate(given[:200]):
        assert ring.find(key.encode()) == f"k{i}"
        assert ring.find(key.encode() + b"x") is None
    assert len(made) < 3 * 400
    assert not ring.slow


def test_lines_from_elsewhere_are_searched_once_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"foreign-key-{i:010}" for i in range(100)]
    path = tmp_path / "keys"
    path.write_text("\n".join([LINE, *(foreign(f"k{i}", k) for i, k in enumerate(given))]))
    ring = read_keys(path)
    assert ring.slow and not ring.remembers(given[3].encode())
    assert ring.find(KEY.encode()) == "alice"
    assert ring.find(given[3].encode()) == "k3"
    assert ring.find(b"nobody-has-this-key") is None
    made = digests(monkeypatch)
    assert ring.find(given[3].encode()) == "k3"
    assert ring.find(b"nobody-has-this-key") is None
    assert len(made) <= 2  # one comparison each, with nobody
    assert given[3].encode() not in ring._known._answers


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(key_files, "REMEMBERED", 8)
    path = tmp_path / "keys"
    path.write_text(foreign("one", KEY))
    ring: KeyRing = read_keys(path)
    assert ring.find(KEY.encode()) == "one"
    for i in range(50):
        assert ring.find(f"unknown-key-{i:08}".encode()) is None
    assert len(ring._unknown._answers) == 8
    assert ring.remembers(KEY.encode())
