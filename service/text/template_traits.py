"""What a chat template honours, and which markers it writes: found once, when it is loaded.

Two sources: its syntax tree (names it mentions, literals it holds), and what it renders for
invented chats (template_probes). A field is honoured if two values of it render to two texts in
some probe. Where no probe with it could be rendered at all, its mention in the tree decides.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import jinja2
import jinja2.meta
from jinja2 import nodes

from quire.service.text.markers import Markers
from quire.service.text.template_environment import Environment
from quire.service.text.template_markers import find_markers
from quire.service.text.template_meter import RenderLimits, TooMuch
from quire.service.text.template_probes import ROLES, Probe, pairs, probes
from quire.service.text.thinking import OPENS

_JUDGED = (
    *((role, "name") for role in ROLES),
    *((role, "tool_calls") for role in ROLES),
    ("assistant", "reasoning_content"),
)
_NOT_CLIENTS = frozenset({"messages", "tools", "add_generation_prompt", "documents"})
PROBE_LIMITS = RenderLimits(max_bytes=1 << 18, max_steps=20_000)
_MARKER_STEPS = 10_000_000
_MAX_SECONDS = 30.0  # of the processor, for all probes of one template


@dataclass(frozen=True, slots=True)
class Traits:
    """variables: names that the template looks up. shown: (role, field) pairs that it honours.
    opens_thoughts: whether it opens them itself where they are wanted; then the model does not."""

    variables: frozenset[str]
    shows_tools: bool
    shown: frozenset[tuple[str, str]]
    markers: Markers
    opens_thoughts: bool = False

    def shows(self, role: str, field: str) -> bool:
        """Whether a message's field makes a difference in some chat."""
        return (role, field) in self.shown


class _Renderer:
    """Renders probes; None for one that the template refuses. Raises TooMuch."""

    def __init__(
        self, environment: Environment, template: jinja2.Template, tokens: Mapping[str, str]
    ) -> None:
        self._environment, self._template, self._tokens = environment, template, tokens
        self._until = time.thread_time() + _MAX_SECONDS

    def __call__(self, probe: Probe) -> str | None:
        try:
            variables = probe.variables(self._tokens)
            return self._environment.render(self._template, variables, self.limits())
        except TooMuch:
            self.limits()  # whose time may be over
            raise
        except Exception:  # it may refuse what was invented, in any way
            return None

    def limits(self) -> RenderLimits:
        """With the time that is left. Raises TooMuch if there is none."""
        left = self._until - time.thread_time()
        if left <= 0:
            raise TooMuch(f"takes the chat template more than {_MAX_SECONDS:g} s, in all its forms")
        return replace(PROBE_LIMITS, max_seconds=left)


def find_traits(
    environment: Environment,
    source: str,
    template: jinja2.Template,
    tokens: Mapping[str, str],
    special: Iterable[str],
    added: Iterable[str],
) -> Traits:
    """Find a template's traits. tokens, special, added: as in ChatTemplate. Raises TooMuch: a
    template that takes so much for a few words cannot be served."""
    tree = environment.parse(source)
    variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
    free = variables - _NOT_CLIENTS - tokens.keys() - environment.globals.keys()
    asked = list(probes(sorted(free)))
    render = _Renderer(environment, template, tokens)
    rendered = [(probe, text) for probe in asked if (text := render(probe)) is not None]
    environment.meter.begin(replace(render.limits(), max_steps=_MARKER_STEPS))
    texts = list(dict.fromkeys(text for _, text in rendered))
    markers = find_markers(tree, texts, tokens, special, added, environment.step)
    mentioned = _mentioned(tree)
    shown = {
        (role, field)
        for role, field in _JUDGED
        if _shows(render, asked, role, field, not mentioned.isdisjoint(_names(field)))
    }
    opens = any(probe.opens and text.rstrip().endswith(OPENS) for probe, text in rendered)
    return Traits(variables, _shows_tools(rendered, variables), frozenset(shown), markers, opens)


def _names(field: str) -> tuple[str, ...]:
    """A field's name, and what transformers calls it too."""
    return (field, "thinking") if field == "reasoning_content" else (field,)


def _shows(render: _Renderer, asked: list[Probe], role: str, field: str, mentioned: bool) -> bool:
    """Whether a template shows a field. mentioned: whether the field's name occurs in the template;
    one that writes messages as a whole shows it all the same."""
    if not mentioned or field != "reasoning_content":  # that depends on settings and on the end
        asked = [probe for probe in asked if not (probe.kwargs or probe.opens)]
    if not mentioned:
        asked = [probe for probe in asked if not probe.tools]
    rendered = False
    for one, two in chain.from_iterable(pairs(probe, role, field) for probe in asked):
        first = render(one)
        second = None if first is None else render(two)
        if first is None or second is None:
            continue
        if first != second:
            return True
        rendered = True
    return mentioned and not rendered


def _shows_tools(rendered: list[tuple[Probe, str]], variables: frozenset[str]) -> bool:
    """Unknown where no chat with tools could be rendered: then the mention counts."""
    if "tools" not in variables:
        return False
    texts = {
        (repr(probe.messages), repr(probe.kwargs), probe.opens, bool(probe.tools)): text
        for probe, text in rendered
    }
    compared = [
        text != texts[(*key[:3], False)]
        for key, text in texts.items()
        if key[3] and (*key[:3], False) in texts
    ]
    return any(compared) or not compared


def _mentioned(tree: nodes.Template) -> frozenset[str]:
    """Attributes and string constants: what a template can ask a message for."""
    return frozenset(
        chain(
            (node.attr for node in tree.find_all(nodes.Getattr)),
            (node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)),
        )
    )
