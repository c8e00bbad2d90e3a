"""Markers: text that a chat template writes around content, and that no content may contain.

Invariant: `Markers.find` is linear in the text, however many markers there are.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ANYWHERE = ""  # the kind of content that all kinds include

_REASONING = re.compile(r"think|reason|thought", re.IGNORECASE)


@dataclass(frozen=True)
class Markers:
    """Markers by the kind of content that they could be forged from.

    by_kind: of ANYWHERE, for all content; of others, in addition. allowed: those that the template
    itself looks for in an assistant's content, and so can tell from its own.
    """

    by_kind: Mapping[str, frozenset[str]]
    allowed: frozenset[str] = frozenset()
    _patterns: dict[str, re.Pattern[str]] = field(default_factory=dict, init=False, repr=False)

    def find(self, text: str, kind: str) -> str | None:
        """The first marker in a text of this kind, or None."""
        pattern = self._patterns.get(kind)
        if pattern is None:
            pattern = self._patterns[kind] = _any_of(self.of(kind))
        found = pattern.search(text)
        return None if found is None else found.group()

    def of(self, kind: str) -> frozenset[str]:
        """The markers that content of this kind may not hold."""
        markers = self.by_kind[ANYWHERE] | self.by_kind.get(kind, frozenset())
        return markers - self.allowed if kind == "assistant.content" else markers


def is_reasoning(marker: str) -> bool:
    """Whether it stands around what a model thinks."""
    return _REASONING.search(marker) is not None


def _any_of(markers: Iterable[str]) -> re.Pattern[str]:
    """One pattern for all, as a tree of their characters: thousands of alternatives in a row would
    each be tried at each place."""
    tree: _Tree = {}
    for marker in markers:
        node = tree
        for character in marker:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_expression(tree) or "(?!)")


_Tree = dict[str, "_Tree"]  # a node: its characters, and "" where a marker ends


def _expression(tree: "_Tree") -> str:
    """The shortest marker wins: it is in the text, whichever else is."""
    if "" in tree or not tree:
        return ""
    branches = [re.escape(character) + _expression(tree[character]) for character in sorted(tree)]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
