"""Command-line flags made from the options' dataclasses, so that each is written down once.

Invariant: a flag that was not given is None, and so left to the environment, the file or the
default; every field of the configuration has its flag.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from quire.service.environment import ENV_PREFIX
from quire.service.settings import option_types

_PANELS = {"EngineConfig": "Engine", "ServiceConfig": "Service"}


def flag_parameters(config: type, leave_out: tuple[str, ...] = ()) -> list[inspect.Parameter]:
    """One keyword parameter for each option of a configuration."""
    types = option_types(config)
    parameters = []
    for option in dataclasses.fields(config):
        if option.name in leave_out:
            continue
        kind, _ = types[option.name]
        parameters.append(_parameter(option, kind, _PANELS.get(config.__name__, "Options")))
    return parameters


def extra_flag(name: str, kind: Any, default: Any, text: str, *names: str) -> inspect.Parameter:
    """A flag that is no option of a configuration."""
    annotation = Annotated[kind, typer.Option(*names, help=text)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def with_flags(
    function: Callable[..., Any], name: str, parameters: list[inspect.Parameter]
) -> Callable[..., Any]:
    """The function as typer shall see it: with these flags, handed over as keywords."""

    def command(**values: Any) -> Any:
        return function(values)

    command.__name__ = name
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def model_argument() -> inspect.Parameter:
    """MODEL, which may be given instead of --model."""
    text = "Directory, name on the Hub, random:SHAPE or pocket; the same as --model."
    info = typer.Argument(help=text, metavar="[MODEL]", show_default=False)
    return inspect.Parameter(
        "model_argument",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, info],
    )


def config_flag() -> inspect.Parameter:
    """--config FILE."""
    return extra_flag(
        "config", Path | None, None, "TOML file with the sections engine and service.", "--config"
    )


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in values.items() if value is not None}


def _parameter(option: "dataclasses.Field[Any]", kind: type, panel: str) -> inspect.Parameter:
    flag = "--" + option.name.replace("_", "-")
    names = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    text = str(option.metadata["help"])
    default = "" if option.default is None else f"default: {option.default}; "
    text += f" ({default}{ENV_PREFIX}{option.name.upper()})"  # brackets would be markup
    info = typer.Option(names, help=text, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )
