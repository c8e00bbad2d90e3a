"""The Jinja environment that chat templates are compiled in: what transformers' has, and a meter.

Invariant: a template sees the names, filters and tags that it sees in transformers, and renders to
the same text. It reaches nothing else (an immutable sandbox), and what it does is counted while it
does it, so that a conversation can neither hold a thread for long nor fill the memory.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from quire.clients import large_json
from quire.service.text.workers import Wanted, check_wanted

_MADE_FOR_EACH_BYTE = 16  # text that a template may make on its way to one byte of the prompt
_CHECK_EVERY = 1024  # steps between two questions whether anyone still waits


class TooMuch(Exception):
    """The conversation renders to more than is allowed, or takes too many steps."""


def _still_wanted() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one rendering may come to.

    max_bytes: of the text, as UTF-8. max_steps: look-ups and calls of the template; each takes less
    than a microsecond or so. wanted: asked now and then; when it says no, rendering ends.
    """

    max_bytes: int = 1 << 28
    max_steps: int = 4_000_000
    wanted: Wanted = _still_wanted


class Meter(threading.local):
    """Counts what the rendering on this thread has done."""

    def __init__(self) -> None:
        self.begin(RenderLimits())

    def begin(self, limits: RenderLimits) -> None:
        """Count from nothing."""
        self._limits = limits
        self._steps = 0
        self._made = 0
        self._written = 0

    def step(self) -> None:
        """One look-up or call. Raises TooMuch or NotWanted."""
        self._steps += 1
        if self._steps % _CHECK_EVERY == 0:
            if self._steps > self._limits.max_steps:
                raise TooMuch(f"takes the chat template more than {self._limits.max_steps} steps")
            check_wanted(self._limits.wanted)

    def made(self, characters: int) -> None:
        """Text on its way. Raises TooMuch."""
        self._made += characters
        if self._made > _MADE_FOR_EACH_BYTE * self._limits.max_bytes:
            raise self._too_long()

    def wrote(self, piece: str) -> None:
        """Text of the prompt. Raises TooMuch."""
        self._written += len(piece) if piece.isascii() else len(piece.encode(errors="replace"))
        if self._written > self._limits.max_bytes:
            raise self._too_long()

    def _too_long(self) -> TooMuch:
        return TooMuch(f"renders to more than {self._limits.max_bytes} bytes")


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """One compiles one template; several threads may render it at a time."""

    intercepted_binops = frozenset({"+", "*", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
        )
        self.meter = Meter()
        self.concat = self._concat  # type: ignore[method-assign]
        self.filters["tojson"] = self._to_json
        self.globals.update(
            raise_exception=_raise,
            strftime_now=_strftime_now,
            dict=_PlainDict(),
            namespace=_PlainNamespace,
        )

    def render(
        self, template: jinja2.Template, variables: Mapping[str, Any], limits: RenderLimits
    ) -> str:
        """The text. Raises TooMuch, NotWanted, and whatever the template raises."""
        self.meter.begin(limits)
        pieces: list[str] = []
        for piece in template.root_render_func(template.new_context(dict(variables))):
            self.meter.step()
            self.meter.wrote(piece)
            pieces.append(piece)
        return "".join(pieces)

    # ------------------------------------------------------------ counted

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Jinja's `obj.attribute`."""
        self.meter.step()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Jinja's `obj[argument]`."""
        self.meter.step()
        return super().getitem(obj, argument)

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Jinja's `obj(…)`."""
        self.meter.step()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """Sums, products and `%`, which can make long texts out of short ones."""
        if operator == "*":
            self.meter.made(_repeated(left, right))
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, str | list):
            self.meter.made(len(made))
        return made

    def _concat(self, pieces: Iterable[str]) -> str:
        """Joins what a macro or a block has written."""
        text = "".join(pieces)
        self.meter.made(len(text))
        return text

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """transformers' `tojson`: nothing escaped for HTML, and json.dumps' own options."""
        options: Any = {
            "ensure_ascii": ensure_ascii,
            "separators": separators,
            "sort_keys": sort_keys,
        }
        if indent is None:
            text = large_json.dumps(value, **options)
            self.meter.made(len(text))
            return text
        if isinstance(indent, int):
            self.meter.made(indent)  # before as many spaces are made
        pieces = []
        encoder = json.JSONEncoder(indent=indent, **options)
        for piece in encoder.iterencode(value):  # deep values are indented far: count on the way
            self.meter.made(len(piece))
            pieces.append(piece)
        return "".join(pieces)


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model is trained on: what stands between
    is rendered as it is."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - Jinja reads it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A call block, as transformers has it: names set inside do not reach outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_as_it_is")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


class _PlainDict:
    """`dict(…)` and `dict.fromkeys(…)`, and no other way into the type."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*args)


class _PlainNamespace(jinja2.utils.Namespace):
    """`namespace(…)` without names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # `self` may be a value's name
        self, *given = args
        attributes = dict(*given, **values)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _repeated(left: Any, right: Any) -> int:
    """Length of a text or list times a number; 0 for two numbers."""
    for text, times in ((left, right), (right, left)):
        if isinstance(text, str | list | tuple) and isinstance(times, int):
            return len(text) * max(times, 0)
    return 0


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - the name that templates may give
    return datetime.now().strftime(format)
