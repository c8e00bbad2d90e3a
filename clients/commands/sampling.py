"""The sampling fields as options of the command line, for every command that generates.

Invariant: one option for each field of SamplingParams (a test counts them), and what is not given
is not sent.
"""

from typing import Annotated

import typer

from quire.clients import digits
from quire.clients.arguments import show
from quire.clients.errors import OptionError

_PANEL = "Sampling (defaults: what the model recommends)"


def _option(text: str, *names: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, help=text, rich_help_panel=_PANEL)
    return option


Temperature = Annotated[float | None, _option("0: greedy.", "--temperature", "-t")]
TopP = Annotated[
    float | None, _option("Keep the smallest set of tokens with this much probability.")
]
TopK = Annotated[int | None, _option("Keep the k most probable tokens; 0: all.")]
MinP = Annotated[
    float | None, _option("Keep tokens with this share of the best one's probability.")
]
RepetitionPenalty = Annotated[float | None, _option("Makes repeated tokens less likely; 1: off.")]
PresencePenalty = Annotated[
    float | None, _option("Subtracted from the logits of tokens already generated.")
]
FrequencyPenalty = Annotated[float | None, _option("The same, once per occurrence.")]
Seed = Annotated[int | None, _option("The same seed gives the same tokens.")]
N = Annotated[int | None, _option("How many completions to generate.", "-n", "--n")]
MaxTokens = Annotated[
    int | None, _option("Generate at most this many tokens.", "--max-tokens", "-m")
]
MinTokens = Annotated[int | None, _option("Do not end before this many tokens.")]
Stop = Annotated[list[str] | None, _option("A string that ends the answer; may be repeated.")]
IncludeStop = Annotated[
    bool,
    _option(
        "Keep the stop string in the answer.", "--include-stop-str-in-output", "--include-stop"
    ),
]
StopTokenIds = Annotated[
    list[int] | None,
    _option("A token id that ends the answer; may be repeated.", "--stop-token-id"),
]
LogitBias = Annotated[
    list[str] | None,
    _option("ID=NUMBER: added to this token's logit; may be repeated.", "--logit-bias"),
]
AllowedTokenIds = Annotated[
    list[int] | None, _option("Allow only these token ids; may be repeated.", "--allowed-token-id")
]
BannedTokenIds = Annotated[
    list[int] | None, _option("Never generate this token id; may be repeated.", "--banned-token-id")
]
IgnoreEos = Annotated[bool, _option("Do not stop at the end-of-text token.", "--ignore-eos")]
Logprobs = Annotated[
    int | None, _option("Log-probabilities, with this many alternatives (--json).")
]
PromptLogprobs = Annotated[
    int | None, _option("The same for the prompt's own tokens (--json).", "--prompt-logprobs")
]

AllowSpecialTokens = Annotated[
    bool,
    typer.Option(
        "--allow-special-tokens", help="Read special tokens in a message as special tokens."
    ),
]


def read_bias(given: list[str] | None) -> dict[int, float] | None:
    """Parse `ID=NUMBER` words. Raises OptionError."""
    bias = {}
    for word in given or ():
        before, _, number = word.partition("=")
        try:
            token_id, value = digits.read(int, before), digits.read(float, number)
        except ValueError:
            raise OptionError(f"--logit-bias {show(word)}: must be ID=NUMBER") from None
        if token_id in bias:
            raise OptionError(f"--logit-bias {show(word)}: given twice")
        bias[token_id] = value
    return bias or None
