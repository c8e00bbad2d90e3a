"""How `--help` looks: plain text, in which every option's name is whole whatever the width.

typer's own tables cut a name that is longer than its column, and a name that is cut cannot be
typed. Here a long name stands on a line of its own and the words about it below. Options keep
their groups. Numbers are read as everywhere else (see digits), not as typer would.
"""

from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ParameterInfo

from quire.clients import digits

WIDEST = 100  # columns; longer lines are hard to read


class NoNumber(typer.BadParameter):
    """A value that is not a number. wanted: what it must be."""

    def __init__(self, value: str, wanted: str, ctx: Any, param: Any) -> None:
        super().__init__(f"{value!r} is not {wanted}", ctx, param)
        self.value = value
        self.wanted = wanted


class Command(TyperCommand):
    """A command with help in this form."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        kinds = get_type_hints(self.callback)
        hints = get_type_hints(self.callback, include_extras=True)
        for param in self.params:
            kind = _number_kind(kinds.get(param.name))
            if kind is not None:
                _judge(param, kind, *_bounds(hints.get(param.name)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then the groups of options in the order in which they come."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                group = getattr(param, "rich_help_panel", None) or kind
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


class App(typer.Typer):
    """All its commands have such help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Any:
        """See typer."""
        settings = {"max_content_width": WIDEST, **(options.pop("context_settings", None) or {})}
        return super().command(name, context_settings=settings, **{"cls": Command, **options})


def _number_kind(hint: Any) -> type | None:
    """int or float, where a value is one, or a list of them, or may be left out."""
    found = {hint, *get_args(hint), *(deep for one in get_args(hint) for deep in get_args(one))}
    return next((kind for kind in (int, float) if kind in found), None)


def _bounds(hint: Any) -> tuple[float | None, float | None]:
    """The least and the greatest value that an option takes; None: there is none."""
    for option in getattr(hint, "__metadata__", ()):
        if isinstance(option, ParameterInfo):
            return option.min, option.max
    return None, None


def _judge(param: Any, kind: type, least: float | None, most: float | None) -> None:
    """Check numbers before they reach the library: it would read other forms of them, and its
    versions report values out of bounds in different words."""
    process = param.process_value

    def judged(ctx: Any, value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, str):
                try:
                    number = digits.read(kind, one)
                except ValueError:
                    raise NoNumber(one, digits.NAMES[kind], ctx, param) from None
                if least is not None and number < least:
                    raise NoNumber(one, f"at least {least:g}", ctx, param)
                if most is not None and number > most:
                    raise NoNumber(one, f"at most {most:g}", ctx, param)
        return process(ctx, value)

    param.process_value = judged
