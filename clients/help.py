"""How `--help` looks: plain text, in which every option's name is whole whatever the width.

typer's own tables cut a name that is longer than its column, and a name that is cut cannot be
typed. Here a long name stands on a line of its own and the words about it below. Options keep
their groups.
"""

from typing import Any

import typer
from typer.core import TyperCommand

WIDEST = 100  # columns; longer lines are hard to read


class Command(TyperCommand):
    """A command whose help is such."""

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
