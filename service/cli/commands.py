"""The server's commands: serve, compile, ray, hash-key.

Invariant: a fault that a person can cause ends with one line on standard error and exit code 2,
without a traceback. Nothing heavy is imported before a command is run.
"""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, QuireError
from quire.service.cli import compile_kernels, torchrun
from quire.service.cli.options import (
    config_flag,
    extra_flag,
    flag_parameters,
    given,
    model_argument,
    with_flags,
)
from quire.service.ray.application_plan import Plan
from quire.service.settings import ServiceConfig, Settings, read_settings

EXIT_DOES_NOT_FIT = 1  # of a dry run
EXIT_USAGE = 2


def register(app: typer.Typer) -> None:
    """Add the commands to the `quire` command."""
    serve_flags = [
        *flag_parameters(EngineConfig),
        *flag_parameters(ServiceConfig),
        config_flag(),
        extra_flag("print_config", bool, False, "Print the settings in force, and exit."),
        extra_flag(
            "dry_run",
            bool,
            False,
            "Print what the model would need, and exit; exit code 1 if it would not start.",
        ),
    ]
    app.command("serve")(with_flags(serve, "serve", [model_argument(), *serve_flags]))
    app.command("compile")(with_flags(compile_, "compile", compile_kernels.parameters()))
    ray_flags = [
        extra_flag(one.name, type(one.default), one.default, one.metadata["help"])
        for one in dataclasses.fields(Plan)
    ]
    app.command("ray")(with_flags(ray, "ray", ray_flags))
    app.command("hash-key")(hash_key)


def hash_key(
    name: Annotated[
        str, typer.Argument(help="Client that gets the key; its name in logs and limits.")
    ],
    stdin: Annotated[
        bool,
        typer.Option("--stdin", help="Read the key from standard input instead of making one."),
    ] = False,
) -> int:
    """Make an API key and print its line for the key file.

    The new key is shown once, on standard error.
    """

    def run() -> int:
        from quire.service.security.keys import make_entry, new_key

        key = sys.stdin.readline().rstrip("\r\n") if stdin else new_key()
        entry = make_entry(name, key)
        if not stdin:
            print(f"the key, shown only once: {key}", file=sys.stderr)
        print(entry)
        return 0

    return _explained(run)


def serve(values: dict[str, Any]) -> int:
    """Serve a model over gRPC and OpenAI's HTTP API.

    An option's value comes from its flag, else from the environment, else from the TOML file given
    by --config, else it is the default.
    """
    return _explained(lambda: _serve(_one_model(values)))


def compile_(values: dict[str, Any]) -> int:
    """Compile a server's kernels for a GPU that need not be here.

    A server with the same options on that card finds them all: it starts for the first time as it
    does later, from an image or a volume. Options are read as by `quire serve`, so its --config
    file will do: options without a flag here decide no kernel. Versions of Quire, torch, Triton and
    Python must be the server's, and so must the build of torch; where they are not, the server
    compiles for itself.
    """

    def run() -> int:
        gpu, out, jobs = (values.pop(name) for name in ("gpu", "out", "jobs"))
        return compile_kernels.run(_settings(_one_model(values)).engine, gpu, out, jobs)

    return _explained(run)


def ray(values: dict[str, Any]) -> int:
    """Serve a model by several local replicas, under Ray Serve.

    Each replica has its own engine. Needs the extra `ray`.
    """

    def run() -> int:
        from quire.service.ray.start import run_forever

        return run_forever(Plan(**values))

    return _explained(run)


def _one_model(values: dict[str, Any]) -> dict[str, Any]:
    """The positional model as the option `model`. Raises ConfigError if two models are given."""
    positional = values.pop("model_argument")
    if positional is None:
        return values
    if values["model"] is not None:
        raise ConfigError(f"two models: {positional} and --model {values['model']}; name one")
    return values | {"model": positional}


def _settings(values: dict[str, Any]) -> Settings:
    config: Path | None = values.get("config")
    flags = given(values)
    return read_settings(torchrun.options(os.environ) | flags, os.environ, config)


def _serve(values: dict[str, Any]) -> int:
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # until there is a handler
    settings = _settings(values)
    if values["print_config"]:
        print(settings.to_toml(), end="")
        return 0
    if values["dry_run"]:
        from quire.service.cli.dry_run import report

        text, fits = report(settings.engine)
        print(text, end="")
        return 0 if fits else EXIT_DOES_NOT_FIT
    from quire.service.app.placement import placed

    if settings.engine.node_rank > 0:
        from quire.service.app.node import follow
        from quire.service.app.process import leave

        return leave(follow(settings))
    with placed(settings) as make_link:
        from quire.service.app.process import leave, serve_forever

        code = serve_forever(settings, make_link)
    return leave(code)


def _explained(run: Callable[[], int]) -> int:
    try:
        return run()
    except QuireError as error:
        with contextlib.suppress(OSError):  # the reader may be gone
            print(f"quire: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
