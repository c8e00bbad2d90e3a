"""What an output must look like, and which tokens are preferred, as the contract has them.

Invariant: nothing is judged here but kinds; whether a schema or a grammar can be honoured, the
server says.
"""

from collections.abc import Mapping
from typing import Any

from quire.clients import arguments
from quire.clients.errors import OptionError
from quire.clients.json_text import write_object
from quire.v1 import inference_pb2 as pb

_KINDS = ("json_schema", "json_object", "regex", "grammar", "choice")


def encode(message: pb.Constraint, value: Any) -> None:
    """Fill the message from a mapping of one kind, and perhaps from_first_token.

    json_schema: a dict or JSON text. json_object: True. regex, grammar: text. choice: texts.
    Raises OptionError.
    """
    given = arguments.parts("constraint", value, (*_KINDS, "from_first_token"))
    kinds = [name for name in given if name in _KINDS]
    if len(kinds) != 1:
        raise OptionError(f"constraint: give exactly one of {', '.join(_KINDS)}")
    for name, part in given.items():
        where = f"constraint.{name}"
        if name == "json_schema":
            message.json_schema = write_object(where, part)
        elif name == "choice":
            texts = arguments.items(where, part, "strings")
            checked = [arguments.text(f"{where}[{i}]", text) for i, text in enumerate(texts)]
            message.choice.options.extend(checked)
            message.choice.SetInParent()
        elif name in ("json_object", "from_first_token"):
            setattr(message, name, arguments.flag(where, part))
        else:
            setattr(message, name, arguments.text(where, part))


def encode_bias(message: pb.SamplingParams, value: Any) -> None:
    """Fill logit_bias from a mapping of token ids to numbers. Raises OptionError."""
    if not isinstance(value, Mapping):
        raise OptionError(f"logit_bias: a dict of token ids, not {arguments.kind(value)}")
    for token_id, bias in value.items():
        where = f"logit_bias[{arguments.show(token_id)}]"
        checked = arguments.integer(where, token_id, lowest=0, highest=(1 << 32) - 1)
        message.logit_bias[checked] = arguments.float32(where, bias)
