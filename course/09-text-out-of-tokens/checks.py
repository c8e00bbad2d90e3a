"""What exercise 9 is held against: letters of one to four bytes, cut anywhere, and broken ones."""

import codecs
from collections.abc import Sequence
from types import ModuleType

from checking import NotYet, attempt, judge

EACH_ALONE = (
    "you decode each token alone: a letter that is cut in two then becomes two marks of a broken "
    "one; its first bytes have to wait for the others"
)
LOST = (
    "you leave out what cannot be decoded: the first bytes of a letter are lost, and the letter "
    "with them; hold them back"
)
ALL_HELD = (
    "you hold everything back until all of it can be decoded: what stands before the half letter "
    "is certain, and its reader waits for nothing"
)
NEVER_ENDS = (
    "you hold back bytes that can never become a letter: whatever comes behind them, they are "
    "broken, and everything after them would wait for ever"
)
PIECE_ALONE = "you forget what was held: the bytes of earlier tokens stand before those of this one"

Said = tuple[str, bytes]


def _right(held: bytes, piece: bytes) -> Said:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(held + piece)
    return text, decoder.getstate()[0]


def _all_held(held: bytes, piece: bytes) -> Said:
    try:
        return (held + piece).decode(), b""
    except UnicodeDecodeError:
        return "", held + piece


def _until_broken(held: bytes, piece: bytes) -> Said:
    """All that decodes from the front; the rest waits, broken or not."""
    whole = held + piece
    try:
        return whole.decode(), b""
    except UnicodeDecodeError as error:
        return whole[: error.start].decode(), whole[error.start :]


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    cases: list[tuple[str, Sequence[bytes]]] = [
        ("plain letters", [b"fo", b"x"]),
        ("a letter of three bytes, cut after the first", ["学".encode()[:1], "学".encode()[1:]]),
        ("words before half a letter", [b"a b" + "é".encode()[:1], "é".encode()[1:] + b"!"]),
        ("a letter of four bytes, byte by byte", [bytes([b]) for b in "🎈".encode()]),
        ("a byte that no letter begins with", [b"a\xff", b"b"]),
        ("half a letter, and then another one", ["学".encode()[:2], b"b"]),
    ]
    for case, tokens in cases:
        held = b""
        for number, piece in enumerate(tokens, 1):
            got = attempt(exercise.push, held, piece)
            if not isinstance(got, tuple) or len(got) != 2:
                raise NotYet(f"{case}: expected a text and the bytes to hold back, got {got!r}")
            suspects = [
                ((piece.decode("utf-8", "replace"), b""), EACH_ALONE),
                (((held + piece).decode("utf-8", "replace"), b""), EACH_ALONE),
                ((piece.decode("utf-8", "ignore"), b""), LOST),
                (((held + piece).decode("utf-8", "ignore"), b""), LOST),
                (_all_held(held, piece), ALL_HELD),
                (_until_broken(held, piece), NEVER_ENDS),
                (_right(b"", piece), PIECE_ALONE),
            ]
            judge(got, _right(held, piece), suspects, f"{case}, token {number}")
            held = got[1]
