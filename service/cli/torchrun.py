"""torchrun's environment variables as options of `quire serve`.

torchrun must start one process per node (`--nproc-per-node 1`). That process starts the ranks of
its node itself: they end together, however they end, and torchrun does not know of them.

Invariant: outside torchrun, and under it on one node, nothing is taken from the environment.
"""

from collections.abc import Mapping
from typing import Any

from quire.clients import digits
from quire.engine.errors import ConfigError
from quire.service.environment import ENV_PREFIX

_MARK = "TORCHELASTIC_RUN_ID"
_NODES, _PROCESSES = "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"
_OPTIONS = {
    "nnodes": _NODES,
    "node_rank": "GROUP_RANK",
    "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
}
_NUMBERS = ("nnodes", "node_rank", "master_port")


def options(environment: Mapping[str, str]) -> dict[str, Any]:
    """Options by name, but for those that a QUIRE_ variable sets. Raises ConfigError."""
    if _MARK not in environment or environment.get(_NODES, "1") == "1":
        return {}
    if environment.get(_PROCESSES, "1") != "1":
        raise ConfigError(
            f"{_PROCESSES} = {environment[_PROCESSES]}: Quire starts a node's ranks itself; give "
            "torchrun --nproc-per-node 1, and quire serve --tensor-parallel-size"
        )
    found: dict[str, Any] = {}
    for option, variable in _OPTIONS.items():
        if ENV_PREFIX + option.upper() in environment:
            continue
        text = environment.get(variable)
        if text is None:
            raise ConfigError(f"torchrun's environment has no {variable}")
        found[option] = _number(variable, text) if option in _NUMBERS else text
    if "master_port" in found:  # torchrun listens there itself, on node 0
        found["master_port"] += 1
    return found


def _number(variable: str, text: str) -> Any:
    try:
        return digits.read(int, text)
    except ValueError:
        raise ConfigError(f"{variable} = {text!r}: must be a whole number") from None
