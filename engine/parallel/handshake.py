"""The first words between node 0 and whoever connects: fixed layouts, little-endian.

    HELLO    of node 0: a magic number, 32 random bytes
    OPENING  of the other: magic, 32 random bytes, its node, the rank that the connection is for
             (-1: the node itself), the length of its configuration, its proof; then the
             configuration (see node_config)
    ANSWER   of node 0: whether the proof is one, and its own

Both proofs cover all that was sent before. What follows are frames (see frame_channel).

Invariant: nothing that a peer sends is interpreted but these numbers before its proof
has been checked.
"""

import secrets
import struct
from dataclasses import dataclass

from quire.engine.errors import RankError
from quire.engine.parallel.secret import PROOF_BYTES, Secret

NO_RANK = -1
MAX_CONFIG_BYTES = 1 << 16
_MAGIC = b"QJ1\n"
_NONCE_BYTES = 32
_HELLO = struct.Struct(f"<4s{_NONCE_BYTES}s")
_SAID = struct.Struct(f"<4s{_NONCE_BYTES}s2iI")  # of an opening, without the proof
_ANSWER = struct.Struct(f"<?{PROOF_BYTES}s")
HELLO_BYTES, ANSWER_BYTES = _HELLO.size, _ANSWER.size
OPENING_BYTES = _SAID.size + PROOF_BYTES
_NODE, _NODE_0 = "node", "node 0"


@dataclass(frozen=True, slots=True)
class Opening:
    """What a node sends first on a connection. rank: NO_RANK for the node's own connection."""

    node: int
    rank: int
    node_config: bytes


def hello() -> bytes:
    """Node 0's greeting, different for each connection."""
    return _HELLO.pack(_MAGIC, secrets.token_bytes(_NONCE_BYTES))


def unsigned(opening: Opening) -> bytes:
    """An opening without its proof and configuration, with random bytes of its own."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return _SAID.pack(_MAGIC, nonce, opening.node, opening.rank, len(opening.node_config))


def signed(secret: Secret, greeting: bytes, said: bytes, node_config: bytes) -> bytes:
    """An opening as it is sent."""
    return said + secret.proof(_NODE, greeting, said, node_config) + node_config


def is_hello(greeting: bytes) -> bool:
    """Whether these bytes are a greeting of node 0."""
    return bool(_HELLO.unpack(greeting)[0] == _MAGIC)


def config_length(head: bytes) -> int:
    """How many bytes follow the first OPENING_BYTES. Raises RankError if they are no opening."""
    magic, _, _, _, length = _SAID.unpack_from(head)
    if magic != _MAGIC:
        raise RankError("it does not speak as a node does")
    if length > MAX_CONFIG_BYTES:
        raise RankError(f"a configuration of {length} bytes: at most {MAX_CONFIG_BYTES}")
    return int(length)


def opened(secret: Secret, greeting: bytes, data: bytes) -> Opening:
    """A whole opening. Raises RankError for a proof that is none on this connection."""
    said, rest = data[: _SAID.size], data[_SAID.size :]
    proof, node_config = rest[:PROOF_BYTES], rest[PROOF_BYTES:]
    if not secret.proves(proof, _NODE, greeting, said, node_config):
        raise RankError("it does not have the secret")
    _, _, node, rank, _ = _SAID.unpack(said)
    return Opening(node, rank, node_config)


def accepted(secret: Secret, greeting: bytes, data: bytes) -> bytes:
    """Node 0's answer to an opening with a valid proof."""
    return _ANSWER.pack(True, secret.proof(_NODE_0, greeting, data))


def rejected() -> bytes:
    """Node 0's answer to any other opening."""
    return _ANSWER.pack(False, bytes(PROOF_BYTES))


def is_accepted(answer: bytes) -> bool:
    """Whether the answer says that the secret is the same. It may come from anybody."""
    return bool(_ANSWER.unpack(answer)[0])


def is_node_0(secret: Secret, answer: bytes, greeting: bytes, data: bytes) -> bool:
    """Whether the answer comes from someone who has the secret."""
    return secret.proves(_ANSWER.unpack(answer)[1], _NODE_0, greeting, data)
