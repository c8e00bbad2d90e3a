"""The file of API keys, and how a key's line is found in it.

One key a line: `NAME sha256:SALT:DIGEST [operator] [max_priority=N]`, salt and digest in
hexadecimal; DIGEST is the SHA-256 of salt and key. Lines that begin with # and empty ones are
skipped. `quire hash-key NAME` makes a line. A key is random and long, so a fast hash is enough:
nobody can try them all.

Salts that Quire makes begin with 16 bits of a hash of the key and carry a mark, so a key is
compared only with the lines of its 16 bits, however many there are. A line from elsewhere has no
mark: a key that no marked line knows is compared with all of these, and what came of it is
remembered by an HMAC under a secret of this process.

Invariant: no key is kept or logged in clear; digests are compared in constant time.
"""

import hashlib
import hmac
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quire.engine.errors import ConfigError
from quire.service.security.reload import read_file

MIN_KEY = 16  # characters
MAX_KEY = 512
MAX_PRIORITY = 1000
MAX_FILE = 16 << 20  # bytes
REMEMBERED = 4096  # keys compared with unmarked lines, each way
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"sha256:([0-9a-f]{16,128}):([0-9a-f]{64})")
_OPTION = re.compile(r"[a-z_]{1,20}")  # anything else may be a secret: it is not repeated
_NUMBER = re.compile(r"-?[0-9]{1,4}")
_BUCKET, _MARK = 2, 6  # bytes of a marked salt: bucket, random, mark
_SALT_BYTES = 16
_LINE = "NAME sha256:SALT:DIGEST [operator] [max_priority=N] (`quire hash-key NAME` makes one)"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One line. operator: may see what concerns all clients. max_priority: the highest priority
    that its calls may ask for."""

    name: str
    salt: bytes
    digest: bytes
    operator: bool = False
    max_priority: int = 0

    def matches(self, key: bytes) -> bool:
        """Whether it is this key's line, in constant time."""
        return hmac.compare_digest(_digest(self.salt, key), self.digest)


_NOBODY = KeyEntry("", bytes(_SALT_BYTES), bytes(32))  # compared with if no key matches


class KeyRing:
    """The keys of one file."""

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        self.entries = tuple(entries)
        self._buckets: dict[bytes, list[KeyEntry]] = {}
        self._unmarked: list[KeyEntry] = []
        for entry in self.entries:
            if _is_marked(entry.salt):
                self._buckets.setdefault(entry.salt[:_BUCKET], []).append(entry)
            else:
                self._unmarked.append(entry)
        self._secret = secrets.token_bytes(32)
        self._known, self._unknown = _Memory(), _Memory()

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyRing) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __str__(self) -> str:
        return f"{len(self)} keys are in force" if self.entries else "nobody may come in"

    def find(self, key: bytes) -> str | None:
        """The name of a key."""
        entry = self.entry(key)
        return None if entry is None else entry.name

    def entry(self, key: bytes) -> KeyEntry | None:
        """The line of a key."""
        found = None
        for entry in self._buckets.get(_bucket(key)) or (_NOBODY,):
            if entry.matches(key) and entry is not _NOBODY:
                found = entry
        if found is not None or not self._unmarked:
            return found
        return self._among_unmarked(key)

    @property
    def slow(self) -> bool:
        """Whether a key that was never seen takes longer than an event loop should be held."""
        return len(self._unmarked) > 64

    def remembers(self, key: bytes) -> bool:
        """Whether `entry` answers at once."""
        if not self._unmarked:
            return True
        name = self._fingerprint(key)
        return self._known.has(name) or self._unknown.has(name)

    def _among_unmarked(self, key: bytes) -> KeyEntry | None:
        name = self._fingerprint(key)
        if self._unknown.has(name):
            return None
        known = self._known.get(name)
        if known is not None:
            return known
        found = None
        for entry in self._unmarked:
            if entry.matches(key):
                found = entry
        (self._unknown if found is None else self._known).put(name, found)
        return found

    def _fingerprint(self, key: bytes) -> bytes:
        return hmac.digest(self._secret, key, "sha256")


class _Memory:
    """The last answers, at most REMEMBERED; threads may share it."""

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, KeyEntry | None] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, name: bytes) -> bool:
        return name in self._answers

    def get(self, name: bytes) -> KeyEntry | None:
        return self._answers.get(name)

    def put(self, name: bytes, entry: KeyEntry | None) -> None:
        with self._lock:
            self._answers[name] = entry
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)


# ------------------------------------------------------------ the file


def read_keys(path: Path, *, may_be_empty: bool = False) -> KeyRing:
    """Raises ConfigError with the line at fault; also for a file without keys, unless it may be."""
    entries, faults = _parse(path)
    if faults:
        raise ConfigError(faults[0])
    if not entries and not may_be_empty:
        raise ConfigError(f"api_keys = {path}: holds no key: nobody could call")
    return KeyRing(entries.values())


def still_standing(path: Path, before: KeyRing) -> KeyRing:
    """The keys that remain valid if the file can no longer be read as a whole: those that still
    have a sound line. None, if it cannot be read at all: any key may have been revoked."""
    try:
        entries, _ = _parse(path)
    except (ConfigError, OSError):
        return KeyRing(())
    known = {(entry.name, entry.salt, entry.digest) for entry in before.entries}
    kept = (e for e in entries.values() if (e.name, e.salt, e.digest) in known)
    return KeyRing(kept)


def _parse(path: Path) -> tuple[dict[str, KeyEntry], list[str]]:
    """The sound lines by name, and the faults of the others."""
    entries: dict[str, KeyEntry] = {}
    faults: list[str] = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            entry = _entry(words)
            if entry.name in entries:
                raise ValueError(f"{entry.name} comes twice")
            entries[entry.name] = entry
        except ValueError as fault:
            faults.append(f"api_keys = {path}: line {number}: {fault}")
    return entries, faults


def _text(path: Path) -> str:
    try:
        return read_file("api_keys", path, MAX_FILE).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"api_keys = {path}: not UTF-8 text") from error


def _entry(words: list[str]) -> KeyEntry:
    """Parse a line. Raises ValueError, which never repeats what is in the place of a hash: it may
    be a key."""
    match = _HASH.fullmatch(words[1]) if len(words) > 1 else None
    if not _NAME.fullmatch(words[0]) or match is None or len(match[1]) % 2:
        raise ValueError(f"not {_LINE}")
    operator, max_priority = False, None
    for option in words[2:]:
        name, has_value, value = option.partition("=")
        if name == "operator" and not has_value and not operator:
            operator = True
        elif name == "max_priority" and max_priority is None:
            max_priority = _priority(value)
        elif name in ("operator", "max_priority"):
            raise ValueError(f"option {name}: once, as `operator` or `max_priority=N`")
        else:
            shown = f"option {name}" if _OPTION.fullmatch(name) else "an option"
            raise ValueError(f"{shown} is unknown: not {_LINE}")
    salt, digest = bytes.fromhex(match[1]), bytes.fromhex(match[2])
    return KeyEntry(words[0], salt, digest, operator, max_priority or 0)


def _priority(value: str) -> int:
    if not _NUMBER.fullmatch(value) or abs(int(value)) > MAX_PRIORITY:
        raise ValueError(
            f"max_priority={value[:16]}: a whole number between {-MAX_PRIORITY} and {MAX_PRIORITY}"
        )
    return int(value)


# ------------------------------------------------------------ new keys


def new_key() -> str:
    """A new random key of 256 bits."""
    return "quire-" + secrets.token_urlsafe(32)


def make_entry(name: str, key: str) -> str:
    """The file's line for a key. Raises ConfigError if the key is not allowed."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: 1 to 64 of A-Z a-z 0-9 . _ -")
    if not MIN_KEY <= len(key) <= MAX_KEY:
        raise ConfigError(f"the key has {len(key)} characters: {MIN_KEY} to {MAX_KEY} are required")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the key: must be printable ASCII without spaces")
    free = _bucket(key.encode()) + secrets.token_bytes(_SALT_BYTES - _BUCKET - _MARK)
    salt = free + _mark(free)
    return f"{name} sha256:{salt.hex()}:{_digest(salt, key.encode()).hex()}"


def _digest(salt: bytes, key: bytes) -> bytes:
    return hashlib.sha256(salt + key).digest()


def _bucket(key: bytes) -> bytes:
    return hashlib.sha256(b"quire bucket" + key).digest()[:_BUCKET]


def _mark(free: bytes) -> bytes:
    return hashlib.sha256(b"quire salt" + free).digest()[:_MARK]


def _is_marked(salt: bytes) -> bool:
    return len(salt) == _SALT_BYTES and salt[-_MARK:] == _mark(salt[:-_MARK])
