"""Finds stop strings in a text that comes in pieces.

Invariant: after `feed`, the last `held` characters of all that was fed are the longest suffix that
may still become a stop string; whoever sends the text on sends none of them. What the finder finds
does not depend on where the pieces are cut: the first stop string to be complete, and of those that
end at the same character the longest.

All stop strings of a request are one machine over characters (Aho and Corasick, 1975): a character
costs one step, and a step back for each step that went forward, however many stops there are and
however long they are. Characters that begin no stop string are skipped without a step.
"""

import re
from array import array
from collections.abc import Sequence
from typing import NamedTuple


class StopMatch(NamedTuple):
    """A stop string, with its place in characters from the beginning of all that was fed."""

    string: str
    start: int
    end: int


class StopAutomaton:
    """The stop strings' trie with its failure links; built once a request, shared by its indices.

    A node is a prefix of some stop string, node 0 the empty one. Most nodes have one child, made
    right after them: a flag says so. Only further children stand in a dictionary, so that the
    machine takes about ten bytes a character.
    """

    __slots__ = (
        "_branches",
        "_chained",
        "_depth",
        "_ends",
        "_fail",
        "_held",
        "_inner",
        "_labels",
        "_parents",
        "_starts",
        "_stops",
    )

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: non-empty strings."""
        self._stops = tuple(stops)
        self._labels = [""]  # by node: the character that leads there
        self._parents = array("L", [0])
        self._depth = array("L", [0])
        self._chained = bytearray(1)  # whether node + 1 is a child
        self._inner = bytearray(1)  # whether there is any child
        self._branches: dict[tuple[int, str], int] = {}
        self._ends = array("L", [0])  # 1 + the longest stop string that ends here, 0: none
        for number, stop in enumerate(self._stops, 1):
            self._insert(stop, number)
        self._fail = array("L", bytes(self._parents.itemsize * len(self._labels)))
        self._held = array("L", self._fail)
        self._link()
        firsts = "".join(sorted({re.escape(stop[0]) for stop in self._stops}))
        self._starts = re.compile(f"[{firsts}]")

    def child(self, node: int, character: str) -> int:
        """The node one character further, or 0."""
        if self._chained[node] and self._labels[node + 1] == character:
            return node + 1
        return self._branches.get((node, character), 0)

    def step(self, node: int, character: str) -> int:
        """The node of the longest suffix after one more character."""
        following = self.child(node, character)
        while node and not following:
            node = self._fail[node]
            following = self.child(node, character)
        return following

    def next_start(self, text: str, at: int) -> int:
        """The next position from `at` on at which a stop string may begin; the text's length if
        there is none."""
        found = self._starts.search(text, at)
        return len(text) if found is None else found.start()

    def held(self, node: int) -> int:
        """Length of the longest suffix that is a proper prefix of a stop string."""
        return self._held[node]

    def ending(self, node: int) -> str | None:
        """The longest stop string that ends here."""
        number = self._ends[node]
        return self._stops[number - 1] if number else None

    def _insert(self, stop: str, number: int) -> None:
        node = 0
        for character in stop:
            node = self.child(node, character) or self._add(node, character)
        if not self._ends[node]:
            self._ends[node] = number

    def _add(self, parent: int, character: str) -> int:
        node = len(self._labels)
        self._labels.append(character)
        self._parents.append(parent)
        self._depth.append(self._depth[parent] + 1)
        self._chained.append(0)
        self._inner.append(0)
        self._ends.append(0)
        self._inner[parent] = 1
        if node == parent + 1:
            self._chained[parent] = 1
        else:
            self._branches[parent, character] = node
        return node

    def _link(self) -> None:
        """Failure links, the shortest prefixes first: each needs those of shorter ones."""
        for node in sorted(range(1, len(self._labels)), key=self._depth.__getitem__):
            parent = self._parents[node]
            fail = self.step(self._fail[parent], self._labels[node]) if parent else 0
            self._fail[node] = fail
            self._held[node] = self._depth[node] if self._inner[node] else self._held[fail]
            if not self._ends[node]:
                self._ends[node] = self._ends[fail]


class StopFinder:
    """One stream's search. After a match it is done."""

    __slots__ = ("_automaton", "_fed", "_node")

    def __init__(self, stops: Sequence[str] | StopAutomaton) -> None:
        self._automaton = stops if isinstance(stops, StopAutomaton) else StopAutomaton(stops)
        self._node = 0
        self._fed = 0

    @property
    def held(self) -> int:
        """Characters at the end that may begin a stop string."""
        return self._automaton.held(self._node)

    def feed(self, text: str, *, honour: bool = True) -> StopMatch | None:
        """Take the next piece; a match is one that is completed by it.

        With honour False a stop string completed by this piece is passed over.
        """
        automaton, node, at = self._automaton, self._node, 0
        while at < len(text):
            if not node:
                at = automaton.next_start(text, at)
                if at == len(text):
                    break
            node = automaton.step(node, text[at])
            at += 1
            stop = automaton.ending(node) if honour else None
            if stop is not None:
                self._node = node
                self._fed += at
                return StopMatch(stop, self._fed - len(stop), self._fed)
        self._node = node
        self._fed += len(text)
        return None
