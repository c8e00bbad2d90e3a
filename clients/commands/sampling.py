"""The sampling fields as options of the command line, for every command that generates.

Invariant: one option for each field of SamplingParams (a test counts them), and what is not given
is not sent.
"""

from typing import Annotated

import typer

from quire.clients import digits
from quire.clients.arguments import show
from quire.clients.errors import OptionError

_PANEL = "Sampling (what is left out follows the model)"


def _option(text: str, *names: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, help=text, rich_help_panel=_PANEL)
    return option


Temperature = Annotated[float | None, _option("0 is greedy.", "--temperature", "-t")]
TopP = Annotated[float | None, _option("Smallest set whose probabilities add up to this.")]
TopK = Annotated[int | None, _option("The k most probable; 0 keeps all.")]
MinP = Annotated[float | None, _option("At least this share of the best one's probability.")]
RepetitionPenalty = Annotated[float | None, _option("Weakens tokens seen; 1 is none.")]
PresencePenalty = Annotated[float | None, _option("Taken from logits of tokens already said.")]
FrequencyPenalty = Annotated[float | None, _option("The same, once for each time said.")]
Seed = Annotated[int | None, _option("Same seed, same tokens.")]
N = Annotated[int | None, _option("Completions of the prompt.", "-n", "--n")]
MaxTokens = Annotated[int | None, _option("At most so many tokens.", "--max-tokens", "-m")]
MinTokens = Annotated[int | None, _option("No end before this many.")]
Stop = Annotated[list[str] | None, _option("A string that ends it; several times for several.")]
IncludeStop = Annotated[
    bool, _option("Keep the stop string.", "--include-stop-str-in-output", "--include-stop")
]
StopTokenIds = Annotated[list[int] | None, _option("A token id that ends it.", "--stop-token-id")]
LogitBias = Annotated[
    list[str] | None, _option("ID=NUMBER, added to that token's logit.", "--logit-bias")
]
AllowedTokenIds = Annotated[list[int] | None, _option("No others.", "--allowed-token-id")]
BannedTokenIds = Annotated[list[int] | None, _option("Never this one.", "--banned-token-id")]
IgnoreEos = Annotated[bool, _option("Go on past the end of text.", "--ignore-eos")]
Logprobs = Annotated[int | None, _option("Log-probabilities, and of this many others (--json).")]
PromptLogprobs = Annotated[
    int | None, _option("The same of the prompt's own tokens (--json).", "--prompt-logprobs")
]

AllowSpecialTokens = Annotated[
    bool,
    typer.Option(
        "--allow-special-tokens", help="Take special tokens written in a message as such."
    ),
]


def read_bias(given: list[str] | None) -> dict[int, float] | None:
    """Of `ID=NUMBER` words. Raises OptionError."""
    bias = {}
    for word in given or ():
        before, _, number = word.partition("=")
        try:
            token_id, value = digits.read(int, before), digits.read(float, number)
        except ValueError:
            raise OptionError(f"--logit-bias {show(word)}: is not ID=NUMBER") from None
        if token_id in bias:
            raise OptionError(f"--logit-bias {show(word)}: was there before")
        bias[token_id] = value
    return bias or None
