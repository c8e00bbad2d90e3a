"""The contract's Constraint: checked, and converted to the engine's.

Invariant: the result depends on the message alone: whoever makes one (an API, a tool's schema) gets
the same refusals.
"""

import contextlib
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.engine.errors import ConstraintError, RequestError
from quire.engine.request import Constraint, GenerationRequest, Vocabulary
from quire.engine.scheduling.matching import constrained
from quire.service.constraints.grammars import Grammars
from quire.service.constraints.sources import MAX_BYTES, field_of
from quire.service.rpc.field_faults import Faults
from quire.service.text.thinking import CLOSES, OPENS, Thinking
from quire.service.text.tokenizer import Tokenizer
from quire.v1 import inference_pb2 as pb

MAX_CHOICES = 10_000


def check_constraint(constraint: pb.Constraint, faults: Faults) -> None:
    """Collect what shows without anything being compiled."""
    kind = constraint.WhichOneof("kind")
    if kind is None:
        faults.add("constraint", "", "give json_schema, json_object, regex, grammar or choice")
    elif kind == "json_object":
        if not constraint.json_object:
            faults.add("constraint.json_object", False, "must be true")
    elif kind == "choice":
        _check_choice(constraint.choice, faults)
    else:
        text: str = getattr(constraint, kind)
        faults.at_most(f"constraint.{kind}", len(text.encode()), MAX_BYTES, "bytes")
        if not text:
            faults.add(f"constraint.{kind}", text, "is empty")


def _check_choice(choice: pb.Choice, faults: Faults) -> None:
    options, field = choice.options, "constraint.choice.options"
    faults.at_most(field, len(options), MAX_CHOICES, "texts")
    faults.at_most(f"{field} (bytes)", choice.ByteSize(), MAX_BYTES, "bytes")
    if not options:
        faults.add(field, "", "is empty: at least one text is needed")
    empty = next((i for i, option in enumerate(options) if not option), None)
    if empty is not None:
        faults.add(f"{field}[{empty}]", "", "is empty")


def read_constraint(constraint: pb.Constraint, thinking: Thinking = Thinking.NONE) -> Constraint:
    """The engine's Constraint. thinking: where the output begins."""
    kind = constraint.WhichOneof("kind")
    assert kind is not None  # as check_constraint has seen
    if kind == "choice":
        text = json.dumps(list(dict.fromkeys(constraint.choice.options)))
    else:
        text = "" if kind == "json_object" else getattr(constraint, kind)
    return behind(Thinking.NONE if constraint.from_first_token else thinking, kind, text)


def behind(thinking: Thinking, kind: str, text: str) -> Constraint:
    """One that begins where thoughts are over."""
    if thinking is Thinking.NONE:
        return Constraint(kind, text)
    return Constraint(kind, text, "" if thinking is Thinking.OPENED else OPENS, CLOSES)


def constraint_of(request: pb.GenerateRequest, thinking: Thinking) -> Constraint | None:
    """A request's, if it has one."""
    if not request.HasField("constraint"):
        return None
    return read_constraint(request.constraint, thinking)


class Compiler:
    """Compiles constraints for one model before their requests are accepted.

    So a refusal comes before any state, and a resumed output that does not fit is one.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]):
        self.parts = (tokenizer, vocab_size, eos_token_ids)
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._grammars = Grammars()

    def begin(self) -> None:
        """Read the vocabulary on a thread that nobody waits for; who asks meanwhile waits."""

        def read() -> None:
            with contextlib.suppress(Exception):  # who asks next is told
                self.vocabulary()

        threading.Thread(target=read, name="quire-vocabulary", daemon=True).start()

    def vocabulary(self) -> Vocabulary:
        """The vocabulary that constraints are compiled for. Slow the first time: do not call it on
        the event loop."""
        with self._lock:
            if self._vocabulary is None:
                tokenizer, vocab_size, eos = self.parts
                self._vocabulary = Vocabulary(tokenizer.backend.to_str(), vocab_size, eos)
                self._grammars.set_vocabulary(self._vocabulary)
                self._grammars.get_ready()
            return self._vocabulary

    def schema_fault(self, schema: Mapping[str, Any]) -> str:
        """Why a schema of a tool cannot be honoured; empty: it can. Not for the event loop."""
        return self._grammars.schema_fault(schema)

    def fault(self, constraint: Constraint) -> str:
        """Why a constraint cannot be compiled; empty: it can."""
        self.vocabulary()
        try:
            self._grammars.compile(constraint)
        except RequestError as error:
            return error.message
        return ""

    def check(self, request: GenerationRequest) -> None:
        """Raise RequestError if the request's constraint, or what it resumes, is impossible."""
        if request.constraint is None:
            return
        self.vocabulary()
        matcher = self._grammars.compile(request.constraint)
        try:
            (one,) = constrained(matcher, replace(request, n=1))
        except ConstraintError as error:
            message = f"do not fit the constraint: {error}"
            raise RequestError("resume_token_ids", message) from error
        try:
            one.prepare(len(request.resume_token_ids))
        except ConstraintError as error:
            raise RequestError(field_of(request.constraint.kind), str(error)) from error
