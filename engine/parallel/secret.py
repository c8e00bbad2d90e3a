"""The secret shared by all nodes, and proofs that a node has it.

A proof is an HMAC-SHA256 over what was sent on one connection, including fresh random numbers of
both sides. So an overheard proof is worthless on any other connection. It is also worthless as the
other side's proof, since each side's begins with its name.

Invariant: the secret itself never goes over a socket, into a log or an error message, or to a
process that is started later.
"""

import hashlib
import hmac
from collections.abc import MutableMapping
from pathlib import Path

from quire.engine.errors import ConfigError
from quire.engine.lifeline import SECRET_VARIABLE as VARIABLE
from quire.engine.plain_file import open_plain

PROOF_BYTES = 32
LEAST_BYTES, MAX_BYTES = 16, 4096


class Secret:
    """Makes proofs, and checks them."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def proof(self, side: str, *said: bytes) -> bytes:
        """PROOF_BYTES bytes. side: who proves it. said: parts of known lengths, except for the
        last."""
        return hmac.digest(self._secret, side.encode() + b"\0" + b"".join(said), hashlib.sha256)

    def proves(self, proof: bytes, side: str, *said: bytes) -> bool:
        """Whether it is the proof of that side; in a time that tells nothing."""
        return hmac.compare_digest(proof, self.proof(side, *said))


def read_secret(file: str | None, environment: MutableMapping[str, str]) -> Secret:
    """The secret from the file, or from the environment variable, which is removed. Raises
    ConfigError."""
    given = environment.pop(VARIABLE, None)
    if file is not None:
        where = f"join_secret_file = {file}"
        try:
            with open_plain(Path(file)) as opened:
                secret = opened.read(MAX_BYTES + 1).strip()
        except OSError as error:
            raise ConfigError(f"{where}: cannot be read: {error.strerror}") from error
    elif given is not None:
        where, secret = VARIABLE, given.strip().encode(errors="surrogateescape")
    else:
        raise ConfigError(f"several nodes need a secret in common: join_secret_file or {VARIABLE}")
    if not LEAST_BYTES <= len(secret) <= MAX_BYTES:
        raise ConfigError(
            f"{where}: a secret of {len(secret)} bytes; it must have {LEAST_BYTES} to {MAX_BYTES}"
        )
    return Secret(secret)
