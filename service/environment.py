"""Options from the environment: QUIRE_ and the option's name in capitals.

Invariant: a variable of that name that sets no option is a ConfigError, but for those that are
others' (see `read_environment`, `is_service_link`).
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from quire.clients import digits
from quire.engine.errors import ConfigError
from quire.engine.lifeline import SECRET_VARIABLE  # no option: it is shown nowhere

ENV_PREFIX = "QUIRE_"
CLIENT_PREFIX = "QUIRE_CLIENT_"
CONFIG_VARIABLE = "QUIRE_CONFIG"
# Of a Service named quire, or quire-…; names of its ports follow SERVICE_PORT.
_LINK_NAME = re.compile(
    r"QUIRE_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)
_LINK_PLAIN = re.compile(
    r".+_(\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)|SERVICE_HOST|SERVICE_PORT(_.+)?)"
)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def read_environment(environment: Mapping[str, str], known: Mapping[str, type]) -> dict[str, Any]:
    """The options that are set. known: all there are, with their types. Raises ConfigError."""
    values = {}
    for variable, text in environment.items():
        if not variable.startswith(ENV_PREFIX) or variable in (CONFIG_VARIABLE, SECRET_VARIABLE):
            continue
        if variable.startswith(CLIENT_PREFIX):
            continue
        if is_service_link(variable, text):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in known:
            meant = nearest(variable, [ENV_PREFIX + one.upper() for one in known])
            raise ConfigError(f"environment variable {variable}: no such option{meant}")
        values[name] = _parsed(f"environment variable {variable}", text, known[name])
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that an unknown one is probably meant to be, if any is similar."""
    found = difflib.get_close_matches(name, known, 1, 0.75)
    return f" (is {found[0]} meant?)" if found else ""


def is_service_link(variable: str, value: str) -> bool:
    """Whether Kubernetes has set it, to tell of a Service: QUIRE_SERVICE_HOST, QUIRE_PORT with a
    value like tcp://10.0.0.1:50051, QUIRE_PORT_50051_TCP_ADDR, and so on. QUIRE_PORT with a number
    is the option."""
    if not _LINK_NAME.fullmatch(variable):
        return False
    return bool(_LINK_PLAIN.fullmatch(variable) or _LINK_VALUE.fullmatch(value))


def _parsed(where: str, text: str, wanted: type) -> Any:
    if wanted is bool:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise ConfigError(f"{where} = {text!r}: must be true or false")
    try:
        return text if wanted is str else digits.read(wanted, text)
    except ValueError:
        raise ConfigError(f"{where} = {text!r}: must be {article(wanted)}") from None


def article(wanted: type) -> str:
    """The name of a type's values."""
    names = {bool: "true or false", str: "a text", **digits.NAMES}
    return names[wanted]
