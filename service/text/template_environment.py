"""The Jinja environment that chat templates are compiled in: what transformers' has, and a meter.

Invariant: a template sees the names, filters and tags that it sees in transformers, and renders to
the same text. It reaches nothing else (an immutable sandbox), and what it does is counted while it
does it, so that a conversation can neither hold a thread for long nor fill the memory.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from quire.clients import large_json
from quire.service.text.template_meter import VALUES, Meter, RenderLimits, listed

_NOBODYS = RenderLimits()


def _given(name: str, args: Iterable[Any], named: Mapping[str, Any]) -> list[Any]:
    """All that a call is given, in its order; of `replace` by name, as `old` and `new` stand."""
    order = ("old", "new", "count") if name == "replace" else ()
    first = [named[key] for key in order if key in named]
    return [*args, *first, *(value for key, value in named.items() if key not in order)]


class _CountedCode(jinja2.compiler.CodeGenerator):
    """Compiles operations that are not calls, but create or repeat something, into calls that are
    counted."""

    def visit_For(self, node: jinja2.nodes.For, frame: jinja2.compiler.Frame) -> None:
        """Each round is a step, and so is each item that the loop's condition leaves out."""
        step = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("step"), [], [], None, None)
        node.body.insert(0, jinja2.nodes.ExprStmt(step))
        if node.test is not None:
            node.test = jinja2.nodes.Or(step, node.test)
        super().visit_For(node, frame)

    def visit_Tuple(self, node: jinja2.nodes.Tuple, frame: jinja2.compiler.Frame) -> None:
        """One that stands left of `=` makes nothing."""
        if node.ctx == "load":
            self._new(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_List(self, node: jinja2.nodes.List, frame: jinja2.compiler.Frame) -> None:
        self._new(super().visit_List, node, frame)

    def visit_Dict(self, node: jinja2.nodes.Dict, frame: jinja2.compiler.Frame) -> None:
        self._new(super().visit_Dict, node, frame)

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        self._new(super().visit_Concat, node, frame)

    def visit_Getitem(self, node: jinja2.nodes.Getitem, frame: jinja2.compiler.Frame) -> None:
        """A slice is a new text or list."""
        if isinstance(node.arg, jinja2.nodes.Slice):
            self._new(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _new(self, visit: Callable[..., None], node: Any, frame: jinja2.compiler.Frame) -> None:
        self.write("environment.new(")
        visit(node, frame)
        self.write(")")


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles one template; several threads may render it at the same time."""

    code_generator_class = _CountedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
        )
        self.meter = Meter()
        self.step, self.new = self.meter.step, self.meter.new  # for what is compiled
        self.finalize = self._finalize
        self.concat = self._concat  # type: ignore[method-assign]
        self.filters["tojson"] = self._to_json
        self.filters = {name: self._counted(name, made) for name, made in self.filters.items()}
        del self.globals["lipsum"]  # as many words of chance as a number says
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
        try:
            for piece in template.root_render_func(template.new_context(dict(variables))):
                self.meter.step()
                self.meter.wrote(piece)
                pieces.append(piece)
        finally:  # nothing of the call is kept until this thread renders again
            self.meter.begin(_NOBODYS)
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
        method = getattr(obj, "__wrapped__", obj)  # of a text's format, its own
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        given = [*map(listed, args)] if name == "join" else args
        if isinstance(subject, VALUES):
            self.meter.before_call(name, subject, _given(name, given, kwargs))
        else:  # macros, namespaces and loops: a number that they are given is no count of anything
            self.meter.step()
        return self.meter.new(super().call(context, obj, *given, **kwargs))

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """Sums, products and `%`, which can make long texts out of short ones."""
        self.meter.before_binop(operator, left, right)
        return self.meter.new(super().call_binop(context, operator, left, right))

    def _counted(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        """A filter, whose first argument may be a context or so."""
        first = int(hasattr(made, "jinja_pass_arg"))

        @functools.wraps(made)
        def counted(*args: Any, **kwargs: Any) -> Any:
            before, subject, given = args[:first], args[first], args[first + 1 :]
            if name == "join":
                subject = listed(subject)
            everything = _given(name, given, kwargs)
            if name == "format":  # the filter is `%`, the method of that name is not
                self.meter.step()
                self.meter.before_percent(str(subject), everything)
            else:
                self.meter.before_call(name, subject, everything)
            return self.meter.new(made(*before, subject, *given, **kwargs))

        return counted

    def _finalize(self, value: Any) -> str:
        """What an output writes."""
        text = value if isinstance(value, str) else str(value)
        self.meter.made(len(text))
        return text

    def _concat(self, pieces: Iterable[str]) -> str:
        """Joins what a macro or a block has written."""
        pieces = list(pieces)
        self.meter.made(sum(map(len, pieces)))
        return "".join(pieces)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """transformers' `tojson`: nothing escaped for HTML, and json.dumps' own options."""
        self.meter.weight(value)
        options: Any = {
            "ensure_ascii": ensure_ascii,
            "separators": separators,
            "sort_keys": sort_keys,
        }
        if indent is None:
            return large_json.dumps(value, **options)
        if isinstance(indent, int):
            self.meter.made(indent)  # before as many spaces are made
        pieces = []
        encoder = json.JSONEncoder(indent=indent, **options)
        for piece in encoder.iterencode(value):  # deep values are indented far: count on the way
            self.meter.made(len(piece))
            pieces.append(piece)
        return "".join(pieces)


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the text that a model is trained on; the content
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

    def __repr__(self) -> str:
        """Without what it holds, which changes, and may be itself."""
        return "<Namespace>"


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - the name that templates may give
    return datetime.now().strftime(format)
