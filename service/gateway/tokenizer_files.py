"""The tokenizer's files as one archive, for gateways that build their own.

Invariant: the same files give the same bytes, so their digest names them.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quire.service.gateway.protos import Protos

CHUNK_BYTES = 1 << 20
_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)


def archive(directory: Path) -> bytes:
    """A zip of those of the files that exist. Reads them, so do not call it on the event loop."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as files:
        for name in _NAMES:
            path = directory / name
            if path.is_file():
                entry = zipfile.ZipInfo(name, _FIRST_DAY)
                entry.compress_type = zipfile.ZIP_DEFLATED
                files.writestr(entry, path.read_bytes())
    return packed.getvalue()


def chunks(protos: Protos, packed: bytes) -> Iterator[Any]:
    """The messages; the last one has the digest."""
    chunk = protos.common.GetTokenizerChunk
    last = max(0, len(packed) - 1) // CHUNK_BYTES
    for index in range(last + 1):
        data = packed[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        digest = hashlib.sha256(packed).hexdigest() if index == last else ""
        yield chunk(data=data, sha256=digest)
