"""Which modules of a checkpoint are FP8: all linear layers except those on a skip list.

Invariant: a name on the list stands for a module and everything inside it, or for all modules whose
names end with it, in whole words between dots. A name that matches nothing in the model is refused.
"""

from collections.abc import Iterable, Iterator

from quire.engine.errors import ConfigError

_ALWAYS = ("lm_head",)  # a tied head is stored nowhere, and is named all the same


def is_skipped(module: str, names: Iterable[str]) -> bool:
    """Whether a list names a module."""
    known = names if isinstance(names, frozenset) else frozenset(names)
    return any(part in known for part in _parts(module))


def check_skipped(names: Iterable[str], weights: Iterable[str]) -> None:
    """Refuse a name that matches none of the modules of these weights. Raises ConfigError."""
    known = {part for weight in weights for part in _parts(weight.rpartition(".")[0])}
    unknown = sorted(set(names) - known.union(_ALWAYS))
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ConfigError(
            f"quantization_config.modules_to_not_convert: {unknown[0]}{more}: the model has no "
            "such module"
        )


def _parts(module: str) -> Iterator[str]:
    """a.b.c: a, a.b, a.b.c; b.c, c."""
    words = module.split(".")
    for count in range(1, len(words) + 1):
        yield ".".join(words[:count])
        yield ".".join(words[-count:])
