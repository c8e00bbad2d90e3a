"""The order in which replicas are asked; needs no Ray."""

from collections import Counter

from quire.clients.replicas.affinity import Memory, PromptKeys, score, seed_of
from quire.clients.replicas.fleet import fullest


def ranked(
    names: list[str], busy: Counter[str], memory: Memory, keys: PromptKeys | None
) -> list[str]:
    """All of them, the best first; of calls without a prompt, as listed where equally busy."""
    if keys is None:
        return sorted(names, key=lambda name: busy[name])
    mean = (sum(busy[name] for name in names) + 1) / max(len(names), 1)
    remembered = memory.recall(keys)

    def rank(name: str) -> tuple[bool, bool, int]:
        full = busy[name] > fullest(mean, known=name == remembered)
        return full, name != remembered, -score(keys.root, seed_of(name))

    return sorted(names, key=rank)
