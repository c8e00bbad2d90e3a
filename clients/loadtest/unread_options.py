"""Load-test options that are only read together with others. One that would not be read is refused,
so that no run is taken for another than it was.
"""

from collections.abc import Collection

from quire.clients.errors import OptionError

_READERS = {  # of an option: those of another, by its name
    "prompt_tokens": ("workload", ("random", "chat")),
    "output_tokens": ("workload", ("random", "chat", "shared-prefix")),
    "prefix_share": ("workload", ("random",)),
    "groups": ("workload", ("shared-prefix",)),
    "prompts_per_group": ("workload", ("shared-prefix",)),
    "prefix_tokens": ("workload", ("shared-prefix",)),
    "question_tokens": ("workload", ("shared-prefix",)),
    "turns": ("workload", ("chat",)),
    "burstiness": ("arrivals", ("gamma",)),
    "speed": ("arrivals", ("trace",)),
}


def check(given: Collection[str], workload: str, arrivals: str, *, as_json: bool) -> None:
    """given: the options that were given. Raises OptionError."""
    chosen = {"workload": workload, "arrivals": arrivals}
    for option, (other, readers) in _READERS.items():
        if option in given and chosen[other] not in readers:
            wanted = " or ".join(f"--{other} {reader}" for reader in readers)
            raise OptionError(f"{option.replace('_', '-')}: has no effect without {wanted}")
    if "detailed" in given and not as_json:
        raise OptionError("detailed: has no effect without --json")
