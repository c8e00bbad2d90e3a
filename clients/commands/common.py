"""What the commands share: the options that name a server, and errors as one line.

Invariant: a command ends with 0, with 1 and one line on standard error that says what to do, with 2
for a usage error, or with 130 after Ctrl-C. It never shows a traceback for anything that a user can
cause.
"""

import functools
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from quire.clients.client import Client
from quire.clients.commands import INTERRUPTED
from quire.clients.connection import DEFAULT_ADDRESS, TLS, Connection
from quire.clients.errors import (
    OPERATORS_ONLY,
    Broken,
    CallError,
    Cancelled,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    NoReplica,
    OptionError,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from quire.clients.replicas.faults import speaks_no_grpc
from quire.clients.replicas.policy import PREFIX, ROUND_ROBIN, ReplicaPolicy

P = ParamSpec("P")
FOR_OPERATORS = (
    "for operators: a key whose line in the server's file has `operator`, or a call from its own"
    " machine to a server that asks for no keys"
)

SERVER = "Server"
ENV_PREFIX = "QUIRE_CLIENT_"
VARIABLES = tuple(
    ENV_PREFIX + name
    for name in (
        "ADDRESS", "API_KEY", "TIMEOUT", "TLS", "TLS_CA", "TLS_CERT", "TLS_KEY", "TLS_SERVER_NAME",
    )
)  # fmt: skip


def _each(addresses: list[str] | None) -> list[str] | None:
    """Addresses one by one: an environment variable can hold several only as a list."""
    if not addresses:
        return None
    return " ".join(addresses).replace(",", " ").split() or [""]  # which is refused by its name


def _address(default: str) -> Any:
    """The option that names servers; default: what is asked where none is named."""
    return typer.Option(
        "--address",
        "-a",
        envvar="QUIRE_CLIENT_ADDRESS",
        callback=_each,
        help="HOST:PORT of the server; for several, repeat it or separate them by commas."
        f" (default: {default})",
        rich_help_panel=SERVER,
    )


Address = Annotated[list[str] | None, _address(DEFAULT_ADDRESS)]
AddressOrNone = Annotated[list[str] | None, _address("none: starts its own server")]
Routing = Annotated[
    str | None,
    typer.Option(
        help=f"How to choose among several servers: {PREFIX} (one that has the prompt's"
        f" beginning cached; the default) or {ROUND_ROBIN}.",
        rich_help_panel=SERVER,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="QUIRE_CLIENT_API_KEY",
        help="API key; sent only over TLS or to loopback. The environment is safer than the"
        " command line.",
        rich_help_panel=SERVER,
    ),
]
UseTLS = Annotated[
    bool,
    typer.Option("--tls", envvar="QUIRE_CLIENT_TLS", help="Use TLS.", rich_help_panel=SERVER),
]
RootFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        envvar="QUIRE_CLIENT_TLS_CA",
        help="PEM file of trusted authorities; implies --tls.",
        rich_help_panel=SERVER,
    ),
]
CertFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        envvar="QUIRE_CLIENT_TLS_CERT",
        help="Client certificate (PEM).",
        rich_help_panel=SERVER,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-key", envvar="QUIRE_CLIENT_TLS_KEY", help="Its key (PEM).", rich_help_panel=SERVER
    ),
]
ServerName = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        envvar="QUIRE_CLIENT_TLS_SERVER_NAME",
        help="Name to expect on the server's certificate.",
        rich_help_panel=SERVER,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        envvar="QUIRE_CLIENT_TIMEOUT",
        help="Deadline of each call, in seconds.",
        rich_help_panel=SERVER,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def given(context: typer.Context) -> set[str]:
    """The options that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, one in sources.items() if one is not None and one.name == "COMMANDLINE"}


def make_tls(
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_server_name: str | None,
) -> TLS | bool:
    """TLS from the options; any of its files turns it on."""
    if not (tls or tls_ca or tls_cert or tls_key or tls_server_name):
        return False
    return TLS(tls_ca, tls_cert, tls_key, tls_server_name)


def make_client(
    address: Sequence[str] | None,
    api_key: str | None,
    tls: TLS | bool,
    timeout: float | None,
    routing: str | None = None,
) -> Client:
    """A client as the options say."""
    addresses = list(address) if address else DEFAULT_ADDRESS
    policy = None if routing is None else ReplicaPolicy(routing=routing)
    return Client(addresses, api_key=api_key, tls=tls, timeout=timeout, replicas=policy)


_OPTIONS = {  # by what the client calls them
    "address": "--address",
    "api_key": "--api-key",
    "timeout": "--timeout",
    "replicas.routing": "--routing",
    "tls.root": "--tls-ca",
    "tls.cert": "--tls-cert",
    "tls.key": "--tls-key",
    "tls.server_name": "--tls-server-name",
}


def _by_option(message: str) -> str:
    """Renames an error about the server's address after the option that set it."""
    name, colon, rest = message.partition(":")
    return _OPTIONS.get(name, name) + colon + rest


def fail(message: str, code: int = 1) -> NoReturn:
    """One line on standard error, and the end."""
    line = " ".join(message.split())
    print(f"quire: {line}", file=sys.stderr)
    raise typer.Exit(code)


def refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Raises OptionError for a QUIRE_CLIENT_ variable that no option reads."""
    for name in sorted(environment):
        if name.startswith(ENV_PREFIX) and name not in VARIABLES:
            raise OptionError(f"{name}: no such variable; known are {', '.join(VARIABLES)}")


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Wraps a command so that its errors become one line and an exit code, as above."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            refuse_unknown_variables(os.environ)
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except OptionError as error:
            fail(_by_option(str(error)), code=2)
        except CallError as error:
            fail(explain(error))
        except ClientError as error:
            fail(str(error))

    return wrapped


@contextmanager
def errors_at(connection: Connection, named: Callable[[str], str] = str) -> Iterator[None]:
    """Inside it, a failed call ends the command with a line that names the server. named: turns
    the fields in a refusal's words into the command's options."""
    try:
        yield
    except OptionError as error:
        raise OptionError(named(str(error))) from error
    except InvalidRequest as error:
        fail(named(explain(error, connection)))
    except CallError as error:
        fail(explain(error, connection))


@contextmanager
def connected(
    address: Sequence[str] | None,
    api_key: str | None,
    tls: TLS | bool,
    timeout: float | None,
    named: Callable[[str], str] = str,
    routing: str | None = None,
) -> Iterator[Client]:
    """A client by these options, whose failed calls end the command (see errors_at)."""
    with make_client(address, api_key, tls, timeout, routing) as client:
        with errors_at(client.connection, named):
            yield client


def explain(error: CallError, connection: Connection | None = None) -> str:
    """What happened, and what to do about it."""
    at = f" at {connection}" if connection else ""
    if isinstance(error, Broken | NoReplica):
        return error.message  # it names each address
    if isinstance(error, Unavailable):
        if connection is not None and _of_another_address(error.message, connection):
            return f"what listens{at} gave no connection: {_TLS_MISMATCH[bool(connection.tls)]}"
        return _unavailable(error.message, at, connection is not None and bool(connection.tls))
    if error.details.reason == OPERATORS_ONLY:
        return f"this is {FOR_OPERATORS} (give the key with --api-key or QUIRE_CLIENT_API_KEY)"
    if isinstance(error, Unauthenticated):
        return f"{error.message} (give the key with --api-key or QUIRE_CLIENT_API_KEY)"
    if isinstance(error, Overloaded):
        after = error.details.retry_after
        return f"{error.message} (try again{f' in {after:g} s' if after else ' later'})"
    if isinstance(error, DeadlineExceeded):
        return "the deadline passed before the end (raise --timeout)"
    if error.details.reason == "MESSAGE_TOO_LARGE":
        return _too_large(error.message)
    if error.code.name == "UNIMPLEMENTED":
        return f"the server{at} does not offer this call: is it a Quire of this version?"
    if isinstance(error, InvalidRequest | Cancelled):
        return error.message
    return f"{error.code.name}: {error.message}"


def _too_large(message: str) -> str:
    """gRPC names the side that would not read the message, its bytes and the most it reads."""
    sizes = re.fullmatch(r"SERVER: .*\((\d+) vs\. (\d+)\)", message)
    if sizes is None:
        return message
    return f"the request takes {sizes[1]} bytes, and the server reads {sizes[2]}: ask with less"


_NOT_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "packet length too long")
_NO_TRUST = (
    "CERTIFICATE_VERIFY_FAILED",
    "certificate verify failed",
    "self-signed",
    "Peer name",
    "Hostname",
)
_GONE = ("Connection refused", "No route to host", "Network is unreachable", "refused", "timed out")
_NO_NAME = ("Name or service not known", "DNS resolution", "Domain name not found", "nodename nor")
_CUT = ("Socket closed", "Connection reset", "connection reset", "End of TCP stream", "EOF")


_TLS_MISMATCH = {
    True: "if the server uses no TLS, leave the --tls options out",
    False: "if the server uses TLS, add --tls or --tls-ca",
}


def _of_another_address(message: str, connection: Connection) -> bool:
    """Whether gRPC's words are not about the address where somebody listens: of a name that has
    several (localhost has two) they tell the last failure alone, and nobody there hides it."""
    if len(connection.hosts) != 1 or not any(sign in message for sign in _GONE):
        return False
    try:
        socket.create_connection(connection.hosts[0], timeout=1.0).close()
    except OSError:
        return False
    return True


def _unavailable(message: str, at: str, over_tls: bool) -> str:
    def says(signs: tuple[str, ...]) -> bool:
        return any(sign in message for sign in signs)

    if says(_NO_NAME):
        return f"no such host{at}: check --address"
    if says(_NOT_TLS):
        return f"the server{at} does not speak TLS on this port: leave the --tls options out"
    if says(_NO_TRUST):
        return (
            f"the certificate of the server{at} is not trusted: name its authority with --tls-ca,"
            " or the name it carries with --tls-server-name"
        )
    if speaks_no_grpc(message):
        return f"what listens{at} is not gRPC: check the port (--address)"
    if says(_CUT) or "handshake" in message.lower():
        tls = "" if over_tls else f"{_TLS_MISMATCH[False]}; "
        return (
            f"the connection{at} was cut at once: {tls}"
            "if it wants a client certificate, add --tls-cert and --tls-key"
        )
    if says(_GONE):
        return f"no server{at}: start one with `quire serve`, or name another with --address"
    return f"the server{at} takes no requests now: {message}"
