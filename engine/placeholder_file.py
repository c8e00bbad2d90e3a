"""Recognises what is sometimes left in place of a model's file, and says how to get the file.

Invariant: only the first bytes of a file are read, and a valid JSON object, template or safetensors
file is never taken for a placeholder.
"""

from pathlib import Path

from quire.engine.plain_file import open_plain

HEAD_BYTES = 1024

_STARTS = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    ),
    (
        b"version https://hawser.github.com/spec/",
        "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    ),
    (b"<!doctype html", "an HTML page, not the file itself: a download that failed"),
    (b"<html", "an HTML page, not the file itself: a download that failed"),
    (b"<?xml", "an XML document, not the file itself: a download that failed"),
    (b"pk\x03\x04", "a zip archive (PyTorch saves weights so); convert it to safetensors"),
    (b"gguf", "a GGUF file, which is not supported; take the model's safetensors"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
)
_ANNEX = "annex/objects/"
_ANNEX_ADVICE = "its content has not been fetched; fetch it with `git annex get`"


def stand_in(head: bytes) -> str | None:
    """What a file that begins with `head` (HEAD_BYTES of it, or all) is instead, or None."""
    if not head:
        return "empty"
    if not head.strip(b"\0"):
        return "nothing but zero bytes: a download that did not finish"
    lower = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what in _STARTS:
        if lower.startswith(start):
            return what
    first = head.split(b"\n", 1)[0].replace(b"\\", b"/")
    if first.startswith((b"/", b".")) and _ANNEX.encode() in first:
        return f"a git-annex pointer: {_ANNEX_ADVICE}"
    return None


def missing(path: Path) -> str:
    """Why a path that cannot be opened is not there."""
    if not path.is_symlink():
        return "no such file"
    target = str(path.readlink())
    if _ANNEX in target.replace("\\", "/"):
        return f"a git-annex link: {_ANNEX_ADVICE}"
    return f"a link to {target}, which is not there"


def fault_of(path: Path) -> str | None:
    """What is at `path` instead of a model's file; None if it may be one. Raises OSError."""
    if not path.exists():
        return missing(path)
    with open_plain(path) as file:
        head = file.read(HEAD_BYTES)
    if len(head) == HEAD_BYTES and not head.strip(b"\0"):
        return None  # a long run of zeros may go on to something: the reader decides
    return stand_in(head)
