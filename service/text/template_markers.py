"""Finds the markers of a chat template: in its literals, and in what it renders for probes.

- The vocabulary's special tokens, and those added tokens that the template writes.
- Markers by their form, `<|user|>`, `[INST]`, `<<SYS>>`, `<start_of_turn>`, that it writes.
- Tags around content, such as `<tool_response>…</tool_response>`: the outermost for all content,
  inner ones for the content that stands in them (a tag `<name>` inside a tool's description says
  nothing about a user's `<name>`). Tags that only stand in its prose are none.
- Headers such as `USER:` where turns have no other marker.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import nodes

from quire.service.text.markers import ANYWHERE, Markers, is_reasoning
from quire.service.text.template_probes import WORDS

_FORMS = re.compile(
    r"<\|[^<>|\s]{1,64}\|>|<｜[^<>｜]{1,64}｜>|<</?[A-Z_]{2,32}>>|\[/?[A-Z][A-Z_]{1,32}\]"
    r"|</?[a-z]+_of_[a-z]+>|<extra_id_\d+>|</?think(?:ing)?>|<\|[a-z_]+>|<[a-z_]+\|>"
)
_TAG = re.compile(r"<(/?)([A-Za-z_][\w.-]*)([= ][^<>]*)?>")
_BRACKET = re.compile(r"[<>\[\]{}|｜]")  # added tokens without one are ordinary words and spaces
_WORD = re.compile("|".join(WORDS.values()))
_KINDS = {word: kind for kind, word in WORDS.items()}
_HEADER = re.compile(r"(?:^|\s)(?:#+ ?)?[A-Za-z][A-Za-z ]{0,30}:(?=\s*$)")


@dataclass(frozen=True, slots=True)
class _Element:
    """A tag that is closed again: text[begin:end]."""

    begin: int
    end: int
    name: str
    valued: bool  # written <name=…> or <name …>

    @property
    def markers(self) -> tuple[str, ...]:
        opened = (f"<{self.name}=", f"<{self.name} ") if self.valued else (f"<{self.name}>",)
        return (*opened, f"</{self.name}>")

    def holds(self, other: "_Element") -> bool:
        return self.begin < other.begin and other.end <= self.end


def find_markers(
    tree: nodes.Template,
    rendered: Sequence[str],
    tokens: Mapping[str, str],
    special: Iterable[str],
    added: Iterable[str],
    step: Callable[[], None],
) -> Markers:
    """The template's markers. rendered: the probes' texts. tokens: named ones; special and added:
    the vocabulary's. step: called for each tag and word that is examined."""
    literals = "\0".join([*_literals(tree), *(_WORD.sub("\0", text) for text in rendered)])
    control = (*special, *tokens.values())
    found: dict[str, set[str]] = {ANYWHERE: {token for token in control if token.strip()}}
    found[ANYWHERE].update(t for t in added if _BRACKET.search(t) and t in literals)
    found[ANYWHERE].update(_FORMS.findall(literals))
    for text in rendered:
        for kind, marker in _of_elements(text, step):
            found.setdefault(kind, set()).add(marker)
    for text in rendered:
        found[ANYWHERE].update(_headers(text, found[ANYWHERE], step))
    read = "\0".join(_looked_for(tree))
    allowed = {
        marker
        for marker in found[ANYWHERE]
        if is_reasoning(marker) and (marker in read or _partner(marker) in read)
    }
    return Markers(
        {kind: frozenset(markers) for kind, markers in found.items()}, frozenset(allowed)
    )


def _literals(tree: nodes.Template) -> Iterator[str]:
    yield from (node.data for node in tree.find_all(nodes.TemplateData))
    yield from _constants(tree)


def _constants(tree: nodes.Node) -> Iterator[str]:
    found = (node.value for node in tree.find_all(nodes.Const))
    return (value for value in found if isinstance(value, str))


def _looked_for(tree: nodes.Template) -> Iterator[str]:
    """Literals that the template compares with, or gives to a method such as split."""
    for compared in tree.find_all(nodes.Compare):
        yield from _constants(compared)
    for call in tree.find_all(nodes.Call):
        given = (part for part in call.args if isinstance(part, nodes.Const))
        yield from (part.value for part in given if isinstance(part.value, str))


def _partner(marker: str) -> str:
    """The other one of `<think>` and `</think>`, `[THINK]` and `[/THINK]`."""
    return marker.replace("/", "", 1) if "/" in marker else marker[:1] + "/" + marker[1:]


def _of_elements(text: str, step: Callable[[], None]) -> Iterator[tuple[str, str]]:
    """The tags around each kind of content; the outermost apply to all kinds."""
    elements = list(_elements(text, step))
    for word in _WORD.finditer(text):
        step()
        around = [e for e in elements if e.begin < word.start() and word.end() < e.end]
        for element in around:
            step()
            outermost = not any(other.holds(element) for other in around)
            kind = ANYWHERE if outermost else _KINDS[word.group()]
            for marker in element.markers:
                yield kind, marker


def _elements(text: str, step: Callable[[], None]) -> Iterator[_Element]:
    """Tags with their closing tags; a tag that is never closed, as in prose, is skipped."""
    opened: list[re.Match[str]] = []
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opened.append(tag)
            continue
        for i in range(len(opened) - 1, -1, -1):
            step()
            if opened[i][2] == tag[2]:
                begin = opened[i]
                del opened[i:]
                if _WORD.search(tag[2]) is None:  # a tag whose name is the client's marks nothing
                    yield _Element(begin.start(), tag.end(), tag[2], begin[3] is not None)
                break


def _headers(text: str, markers: set[str], step: Callable[[], None]) -> Iterator[str]:
    """The line before a turn, if it consists of words and there are no other markers."""
    turns = {WORDS[f"{role}.content"] for role in ("user", "assistant")}
    before = 0
    for word in _WORD.finditer(text):
        step()
        glue = text[before : word.start()]
        if word.group() in turns and before and not any(marker in glue for marker in markers):
            header = _HEADER.search(glue)
            if header is not None:
                yield header.group()
        before = word.end()
