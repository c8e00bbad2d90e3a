"""What HTTP calls the fields that the contract names: the same faults, in its words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from quire.service.errors import Refusal, Violation

_COMMON = (
    (r"sampling\.", ""),
    (
        r"chat\.messages\[(\d+)\]\.tool_calls\[(\d+)\]\.name",
        r"messages[\1].tool_calls[\2].function.name",
    ),
    (
        r"chat\.messages\[(\d+)\]\.tool_calls\[(\d+)\]\.arguments_json",
        r"messages[\1].tool_calls[\2].function.arguments",
    ),
    (r"chat\.tools\[(\d+)\]\.parameters_json", r"tools[\1].function.parameters"),
    (r"chat\.tools\[(\d+)\]\.", r"tools[\1].function."),
    (r"chat\.tool_choice\.name", "tool_choice.function.name"),
    (r"chat\.", ""),
    (r"chat$", "messages"),
    (r"request_id$", "x-request-id"),
    (r"(text|token_ids)(\.ids)?(?=$|\[)", "prompt"),
)
_RULES = tuple((re.compile(contract), http) for contract, http in _COMMON)
_MAX_TOLD = 16
_IN_WORDS = "sampling."
_PRIORITY = " (in the contract's sense, where higher runs first: here turn the sign)"


@dataclass(frozen=True, slots=True)
class Names:
    """Of one request. given: contract's fields that this request gave under other names."""

    given: Mapping[str, str] = field(default_factory=dict)

    def http(self, contract: str) -> str:
        """A field's name."""
        for name, told in self.given.items():
            rest = contract.removeprefix(name)
            if rest != contract and (not rest or rest[0] in ".["):
                return told + rest
        for pattern, told in _RULES:
            if pattern.match(contract):
                return pattern.sub(told, contract, count=1)
        return contract

    def translated(self, refusal: Refusal) -> Refusal:
        """The same refusal, as a client of HTTP reads it."""
        if not refusal.violations:
            return refusal
        violations = [self._violation(v) for v in refusal.violations[:_MAX_TOLD]]
        message = refusal.message
        if refusal.code is grpc.StatusCode.INVALID_ARGUMENT:
            message = "; ".join(f"{name}: {text}" for name, text in violations)
        return Refusal(
            refusal.code,
            message,
            reason=refusal.reason,
            violations=violations,
            retry_after=refusal.retry_after,
        )

    def _violation(self, violation: Violation) -> Violation:
        text = violation.description.replace(_IN_WORDS, "")
        if violation.field == "priority":
            text += _PRIORITY
        return Violation(self.http(violation.field), text)
