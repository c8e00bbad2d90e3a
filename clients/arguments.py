"""Checks of callers' arguments: each function returns the value, or raises OptionError.

Invariant: an error names the argument (`where`), and TypeError, OverflowError or UnicodeEncodeError
never get through. Only kinds are checked here, and what the contract's fields can hold; all other
limits are the server's, so that they are in one place.
"""

import math
import numbers
import operator
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quire.clients.errors import OptionError
from quire.clients.single_precision import MAX_FLOAT32, no_zero

MAX_SECONDS = 1e9  # about 32 years; gRPC's clock cannot hold much more
_MAX_BYTES = 256 << 20  # of a file that is read whole
_MAX_SHOWN = 80  # characters of a value that an error repeats


def text(where: str, value: Any) -> str:
    """A string that UTF-8 can hold: no halves of surrogate pairs, and so no bytes of an argument, a
    file's name or standard input that were not UTF-8, in whose place Python has such halves."""
    if not isinstance(value, str):
        raise OptionError(f"{where}: text, not {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        why = "half of a surrogate pair, which is not a character"
        if _stands_for_bytes(value):
            why = "bytes that are not UTF-8"
        raise OptionError(f"{where}: {show(value)} holds {why}") from None
    return str(value)


def _stands_for_bytes(value: str) -> bool:
    """Whether every half of a surrogate pair is one that Python puts in a byte's place."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def read_whole(path: Path) -> bytes:
    """A file's content. Raises OSError, without blocking: opening a pipe would wait for its writer,
    a device may be endless, and a file may be larger than memory."""
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "is not a file")
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise OSError(0, f"more than {_MAX_BYTES} bytes")
    return raw


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def file_text(where: str, path: Path) -> str:
    """A file's content, as text."""
    try:
        return read_whole(path).decode()
    except OSError as error:
        raise OptionError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise OptionError(f"{where}: is not UTF-8") from None
    except ValueError as error:  # a path that holds a zero byte
        raise OptionError(f"{where}: cannot be read: {error}") from None


def refuse_what_is_no_file(path: Path) -> None:
    """Raises OptionError for a pipe, a device or a directory. A path that does not exist is
    accepted."""
    if path.exists() and not path.is_file():
        raise OptionError(f"{path}: is not a file, which can be read again")


def integer(where: str, value: Any, lowest: int, highest: int) -> int:
    """A whole number within bounds, of any type that is one (numpy's too); not a bool."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise OptionError(f"{where}: a whole number, not {kind(value)}")
    try:
        whole = operator.index(value)
    except Exception:
        raise OptionError(f"{where}: a whole number, not {kind(value)}") from None
    if not lowest <= whole <= highest:
        raise OptionError(f"{where}: {show(whole)} is not between {lowest} and {highest}")
    return whole


def number(where: str, value: Any) -> float:
    """A finite number; not a bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise OptionError(f"{where}: a number, not {kind(value)}")
    try:
        real = float(value)
    except (OverflowError, ValueError):
        real = math.inf
    if not math.isfinite(real):
        raise OptionError(f"{where}: {show(value)} is not a finite number")
    return real


def float32(where: str, value: Any) -> float:
    """A number that single precision can hold."""
    real = number(where, value)
    if abs(real) > MAX_FLOAT32:
        raise OptionError(f"{where}: {show(value)} is beyond single precision")
    return no_zero(real)


def flag(where: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as such."""
    if not isinstance(value, bool):
        raise OptionError(f"{where}: True or False, not {kind(value)}")
    return value


def seconds(where: str, value: Any) -> float | None:
    """A time to wait, above 0; None: no limit."""
    if value is None:
        return None
    wait = number(where, value)
    if not 0 < wait <= MAX_SECONDS:
        raise OptionError(
            f"{where}: {show(value)}; a positive number of seconds, at most {MAX_SECONDS:.0e}"
        )
    return wait


def items(where: str, value: Any, what: str) -> Sequence[Any]:
    """A list, tuple or other sequence; `what` names its items. Strings and bytes are not
    accepted."""
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Sequence):
        raise OptionError(f"{where}: a list of {what}, not {kind(value)}")
    return value


def parts(where: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The named parts of a mapping that are not None; another key is refused, not ignored."""
    if not isinstance(value, Mapping):
        raise OptionError(f"{where}: a dict with {', '.join(names)}, not {kind(value)}")
    given = {key: part for key, part in value.items() if part is not None}
    for key in given:
        if key not in names:
            raise OptionError(f"{where}: unknown key {show(key)}; it may have {', '.join(names)}")
    return given


def instance(where: str, value: Any, types: type | tuple[type, ...], what: str) -> Any:
    """A value of one of the types; `what` names them in the error."""
    if not isinstance(value, types):
        raise OptionError(f"{where}: {what}, not {kind(value)}")
    return value


def kind(value: Any) -> str:
    """The kind of a value, for an error message."""
    return "None" if value is None else type(value).__name__


def show(value: Any) -> str:
    """A value as an error repeats it: cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print the longest
        return f"a whole number of {value.bit_length()} bits"
    try:
        shown = repr(value)
    except Exception:
        return f"a {kind(value)}"
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"


def texts(where: str, value: Iterable[Any]) -> list[str]:
    """Strings, each named by its index."""
    return [text(f"{where}[{i}]", item) for i, item in enumerate(value)]
