"""What all nodes must have in common, compared when they join.

Invariant: nodes whose configurations are equal run the same program on the same class of device,
with the same options, on models of one shape. (Weights are compared later, when they are loaded.)
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform

import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import RankError
from quire.engine.model.config import ModelConfig

# Options that may differ: where a node's files are, its number, its name for node 0.
OWN = frozenset({"model", "node_rank", "master_addr", "join_secret_file", "join_seconds"})
_MODEL, _SHAPE = "model", "the model's configuration"

NodeConfig = dict[str, str]


def node_config_of(config: EngineConfig, shape: ModelConfig, device: torch.device) -> NodeConfig:
    """This node's: values by name, as text."""
    options = {
        name: str(value) for name, value in dataclasses.asdict(config).items() if name not in OWN
    }
    return {
        "Quire": importlib.metadata.version("quire"),
        "torch": torch.__version__,
        "device": _device(device),
        _MODEL: config.model,
        _SHAPE: hashlib.sha256(repr(shape).encode()).hexdigest()[:16],
        **options,
    }


def difference(first: NodeConfig, other: NodeConfig, node: int) -> str | None:
    """Why a node cannot join node 0, whose configuration comes first; None if it can."""
    for name in sorted(first.keys() | other.keys()):
        ours, theirs = first.get(name), other.get(name)
        if name == _MODEL or ours == theirs:
            continue
        if name == _SHAPE:
            return (
                f"node {node} has another model than node 0: "
                f"{other.get(_MODEL)}, not {first.get(_MODEL)} (their configurations differ)"
            )
        return f"node {node} has {name} = {theirs}, and node 0 has {ours}: they must be equal"
    return None


def pack(node_config: NodeConfig) -> bytes:
    """The configuration as JSON."""
    return json.dumps(node_config).encode()


def unpack(body: bytes) -> NodeConfig:
    """The reverse. Raises RankError for anything but an object of strings."""
    try:
        values = json.loads(body)
    except ValueError as error:
        raise RankError("a configuration that is not JSON") from error
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise RankError("a configuration that is not an object of strings")
    return values


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
