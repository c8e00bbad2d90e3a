"""Numbers that somebody has typed: flags, variables and words of several read them in one way."""

import contextlib
from typing import Any

import pytest
import typer

from quire.clients import cli, digits
from quire.clients.commands.sampling import read_bias
from quire.clients.errors import OptionError
from quire.clients.help import NoNumber
from quire.clients.loadtest.summary import parse_limits
from quire.clients.loadtest.workload import Span
from quire.engine.errors import ConfigError
from quire.service.cli.torchrun import options
from quire.service.environment import read_environment

ODD = ["", " ", "٣", "３", "𝟓", "²", "1_000", " 5", "5 ", "5\n", "+5", "--5", "0x10", "5,0", "½"]
NO_NUMBER = [*ODD, "nan", "inf", "-Infinity", "1e999", "1e", ".", "e5"]
NO_WHOLE = [*NO_NUMBER, "5.0", "1e3", "9" * 4001]


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5.0), ("-5", -5.0), (".5", 0.5), ("5.", 5.0), ("1e3", 1e3)]
)
def test_what_people_write_is_a_number(text: str, value: float) -> None:
    assert digits.read(float, text) == value


@pytest.mark.parametrize("text", NO_NUMBER)
def test_nothing_else_is_one(text: str) -> None:
    with pytest.raises(ValueError):
        digits.read(float, text)


@pytest.mark.parametrize("text", NO_WHOLE)
def test_nothing_else_is_a_whole_one(text: str) -> None:
    with pytest.raises(ValueError):
        digits.read(int, text)


def taken(option: Any, context: Any, text: str) -> Any:
    """What becomes of a text, once if the option can be given several times."""
    value = option.process_value(context, [text] if option.multiple else text)
    return value[0] if option.multiple else value


def test_each_option_of_each_command_that_is_a_number_is_read_so() -> None:
    root: Any = typer.main.get_command(cli.build_app([]))
    told = 0
    for name, command in root.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        for option in command.params:
            value: Any = None
            with contextlib.suppress(typer.BadParameter):
                value = taken(option, context, "5")
            if value == 5:
                told += 1
                for text in NO_WHOLE if isinstance(value, int) else NO_NUMBER:
                    with pytest.raises(NoNumber):
                        taken(option, context, text)
    assert told > 90


@pytest.mark.parametrize("text", NO_WHOLE)
def test_nor_do_variables_and_words_of_several_numbers_take_it(text: str) -> None:
    with pytest.raises(ConfigError, match="environment variable QUIRE_PORT"):
        read_environment({"QUIRE_PORT": text}, {"port": int})
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": text, "GROUP_RANK": "0"}
    with pytest.raises(ConfigError, match="GROUP_WORLD_SIZE"):
        options({**torchrun, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"})
    for word in (f"{text}:7", f"7:{text}"):
        with pytest.raises(OptionError):
            Span.parse("prompt-tokens", word)
    with pytest.raises(OptionError):
        read_bias([f"{text}=1"])


@pytest.mark.parametrize("text", NO_NUMBER)
def test_nor_where_a_fraction_may_stand(text: str) -> None:
    with pytest.raises(ConfigError, match="environment variable QUIRE_DRAIN_SECONDS"):
        read_environment({"QUIRE_DRAIN_SECONDS": text}, {"drain_seconds": float})
    with pytest.raises(OptionError):
        read_bias([f"7={text}"])
    with pytest.raises(OptionError):
        parse_limits([f"ttft:{text}"])
