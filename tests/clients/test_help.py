"""What `--help` shows, in any width: every option whole, within its group."""

import re

import pytest
from support.server_process import quire

from quire.clients.cli import CLIENT_COMMANDS, build_app


def shown(width: int, *words: str) -> str:
    done = quire(*words, "--help", COLUMNS=str(width))
    assert done.returncode == 0, done
    return done.stdout


def options_of(name: str) -> set[str]:
    """Each name that the command takes."""
    import typer

    command = typer.main.get_command(build_app([name])).commands[name]  # type: ignore[attr-defined]
    return {word for param in command.params for word in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_name_is_whole_and_no_line_is_too_long(width: int) -> None:
    for name in ("serve", "compile", "generate"):
        page = shown(width, name)
        named = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", page))
        missing = {word for word in options_of(name) if word.startswith("-")} - named
        assert not missing
        assert max(map(len, page.splitlines())) <= width
        assert "…" not in page


def test_options_stand_in_groups() -> None:
    page = shown(80, "serve")
    heads = [line for line in page.splitlines() if line and not line.startswith(" ")]
    assert [head.split(":")[0] for head in heads[1:]] == [
        "Arguments", "Engine", "Service", "Options",
    ]  # fmt: skip


def test_the_list_of_commands_says_each_in_a_whole_sentence() -> None:
    page = shown(80)
    for name in (*CLIENT_COMMANDS, "serve", "compile", "hash-key"):
        assert re.search(rf"^  {name} .*\.$", page, re.MULTILINE), name
    assert "..." not in page.split("Commands:")[1]
