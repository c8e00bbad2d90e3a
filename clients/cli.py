"""The `quire` command.

Invariant: a client's command never imports more than the client needs (it starts in a fraction of
a second, without torch); the server's commands are found through the entry-point group
`quire.commands` when one of them, or the help, is asked for. Of the commands only the one that is
asked for is imported and built.
"""

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, cast

if sys.argv[1:2] == ["serve"]:
    # Signals that ask a running server for something must not end one that is still starting:
    # the imports from here on take a second or two, and the server's own handlers come after.
    for _name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, _name):
            signal.signal(getattr(signal, _name), signal.SIG_IGN)

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log lines help nobody here

try:
    import importlib.metadata

    import typer

    from quire.clients import standard_streams
    from quire.clients.commands import INTERRUPTED
    from quire.clients.help import WIDEST, App, NoNumber
except KeyboardInterrupt:  # a first start takes a second or more
    sys.exit(130)

GROUP = "quire.commands"
SERVER_COMMANDS = ("serve", "compile", "ray", "hash-key")
CLIENT_COMMANDS = {  # and the module of each, in the order of the help
    "generate": "generate",
    "chat": "chat",
    "batch": "batch",
    "tokenize": "tokenize",
    "stats": "stats",
    "health": "stats",
    "loadtest": "loadtest",
    "top": "top",
    "watch": "watch",
}
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
HOW_TO_GET_THE_SERVER = "quire: the server is not installed: pip install '.[server]'"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"quire {importlib.metadata.version('quire')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    """Serve language models over gRPC and HTTP, and talk to them."""


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The command that the arguments begin with; all where they begin with none."""
    app = App(
        name="quire",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings={"max_content_width": WIDEST},
    )
    app.callback()(_root)
    asked = [word for word in arguments[:1] if word in (*CLIENT_COMMANDS, *SERVER_COMMANDS)]
    if not asked or asked[0] in SERVER_COMMANDS:  # the first that anybody needs is `serve`
        _add_server_commands(app)
    for name, module in CLIENT_COMMANDS.items():
        if not asked or name in asked:
            command = importlib.import_module(f"quire.clients.commands.{module}")
            app.command()(getattr(command, name))
    return app


def _add_server_commands(app: typer.Typer) -> None:
    """Lets each entry point register its commands, with placeholders for those that cannot be
    loaded."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()(app)
        except ImportError as error:
            _stand_in(app, error)


def _stand_in(app: typer.Typer, error: ImportError) -> None:
    def missing(_: typer.Context) -> None:
        print(f"{HOW_TO_GET_THE_SERVER} ({error})", file=sys.stderr)
        raise typer.Exit(1)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    for name in SERVER_COMMANDS:
        app.command(
            name, help="(needs the server: pip install '.[server]')", context_settings=settings
        )(missing)


@contextlib.contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """Inside it SIGTERM ends as an exception does: the terminal is set back. A second one kills."""

    def leave(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + number)

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # ignored, or another's
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0, 1, 2 (usage), 130 (Ctrl-C) or 143 (SIGTERM)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    standard_streams.fill()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not words or words[0] not in (*CLIENT_COMMANDS, "compile"):
        sys.exit(_run(words))
    with _leaving_at_sigterm():
        sys.exit(_run(words))


def _run(words: list[str]) -> int:
    # ClickException, wherever this typer keeps it
    usage_error = cast(type[Exception], typer.BadParameter.__mro__[2])
    try:
        result = build_app(words)(args=words, prog_name="quire", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except UnicodeDecodeError as error:  # files are read with words of their own
        print(f"quire: standard input is not {error.encoding.upper()}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        return _explain_output(error)
    except ModuleNotFoundError as error:
        if words[:1] and words[0] in SERVER_COMMANDS:
            print(f"{HOW_TO_GET_THE_SERVER} ({error})", file=sys.stderr)
            return 1
        raise
    except usage_error as error:
        return _explain_usage(error, words)
    return result if isinstance(result, int) else 0


def _explain_output(error: OSError) -> int:
    """The reader of our output has left, which is not an error, or there is no space for it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), standard_streams.OUTPUT)
    if error.errno != errno.EPIPE:
        with contextlib.suppress(OSError):  # standard error may be there too
            print(f"quire: the output cannot be written: {error.strerror}", file=sys.stderr)
    return 1


_WANTED = {  # by the name of the fault in the library that checks values
    "int_parsing_size": "a smaller whole number",
    "bool_parsing": "true or false",
}


def _judged(error: BaseException) -> str:
    """The option, its value and its allowed values, if a value was refused; else nothing."""
    option = getattr(error, "param", None)
    value, wanted = _fault(error)
    if not wanted or option is None:
        return ""
    name = max(option.opts, key=len) if option.opts[0].startswith("-") else option.name.upper()
    source = error.ctx.get_parameter_source(option.name)  # type: ignore[attr-defined]
    if source is not None and source.name == "ENVIRONMENT":
        name = f"{option.envvar} (for {name})"
    return f"{name} {value}: must be {wanted}"


def _fault(error: BaseException) -> tuple[object, str]:
    """A value, and what it must be: nothing, where it is not known."""
    if isinstance(error, NoNumber):
        return error.value, error.wanted
    judge = getattr(error.__cause__, "errors", None)
    if judge is None:
        return None, ""
    (fault, *_) = judge()
    return fault["input"], _WANTED.get(fault["type"], "")


def _explain_usage(error: BaseException, words: list[str]) -> int:
    message = _judged(error) or error.format_message()  # type: ignore[attr-defined]
    if not words:  # no command given: the help is the message
        error.show()  # type: ignore[attr-defined]
    else:
        print(f"quire: {message.removesuffix('.')} (see --help)", file=sys.stderr)
    return int(error.exit_code)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
