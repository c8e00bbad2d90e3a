"""The embedded model's directory and the check that nobody altered it.

Invariant: `manifest.json` names every file of the model with its sha256; a directory passes
`verify` only if each named file is there, byte for byte. Needs no torch and no tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def directory() -> Path:
    """The directory of the model shipped with this package (also from an installed wheel)."""
    return Path(__file__).resolve().parent


def _digests(manifest: Path) -> dict[str, str]:
    if not manifest.is_file():
        raise ValueError(f"model directory {manifest.parent}: file {MANIFEST} is missing")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"model directory {manifest.parent}: file {MANIFEST} is not JSON: {error}"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"model directory {manifest.parent}: file {MANIFEST} names no file")
    return {str(name): str(digest) for name, digest in content.items()}


def has_manifest(path: Path) -> bool:
    """Whether a directory holds a manifest of this kind: file names and their sha256."""
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(content, dict)
        and bool(content)
        and all(
            isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in content.values()
        )
    )


def verify(path: Path) -> None:
    """Checks a model directory against its manifest.

    Raises:
        ValueError: the manifest or a file it names is missing, or a file differs from its sha256;
            the message names the file.
    """
    for name, expected in _digests(path / MANIFEST).items():
        if name != Path(name).name or name in (".", ".."):
            raise ValueError(f"model directory {path}: {MANIFEST} names {name!r}, not a plain file")
        file = path / name
        if not file.is_file():
            raise ValueError(f"model directory {path}: file {name} is missing")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(
                f"model directory {path}: file {name} is altered: "
                f"sha256 {found}, the manifest says {expected}"
            )
