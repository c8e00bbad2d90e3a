"""The nodes' secret, and the configuration that they must have in common."""

import dataclasses
from typing import Any

import pytest
import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.load_config import model_config
from quire.engine.parallel import join_listener
from quire.engine.parallel.handshake import NO_RANK
from quire.engine.parallel.node import places
from quire.engine.parallel.node_config import NodeConfig, node_config_of
from quire.engine.parallel.secret import read_secret


def test_a_secret_comes_from_a_file_or_the_environment_which_it_leaves(tmp_path: Any) -> None:
    file = tmp_path / "secret"
    file.write_text("sixteen bytes or more\n")
    environment = {"QUIRE_JOIN_SECRET": " sixteen bytes or more", "HOME": "/"}
    one = read_secret(None, environment)
    assert environment == {"HOME": "/"}
    other = read_secret(str(file), environment)
    assert one.proves(other.proof("node", b"x"), "node", b"x")
    assert not one.proves(other.proof("node", b"x"), "node 0", b"x")
    with pytest.raises(ConfigError, match="need a secret in common: join_secret_file or QUIRE_"):
        read_secret(None, environment)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_secret(str(tmp_path / "none"), environment)
    with pytest.raises(ConfigError) as refused:
        read_secret(None, {"QUIRE_JOIN_SECRET": "swordfish"})
    assert str(refused.value) == "QUIRE_JOIN_SECRET: a secret of 9 bytes; it must have 16 to 4096"


def test_nodes_compare_programs_options_and_models() -> None:
    def of(**options: Any) -> NodeConfig:
        values = {"model": "random:tiny", "device": "cpu", "tensor_parallel_size": 2, **options}
        nodes = {"nnodes": 2, "master_addr": "10.0.0.1", "master_port": 29500}
        config = EngineConfig(**{**nodes, **values})
        return node_config_of(config, model_config(config), torch.device("cpu"))

    def differs(**options: Any) -> str | None:
        return join_listener.difference(of(), of(**options), 1)

    own = {"node_rank": 1, "master_addr": "node0", "join_secret_file": "x", "join_seconds": 9.0}
    assert differs(**own) is None
    assert differs(seed=1) == "node 1 has seed = 1, and node 0 has 0: they must be equal"
    model = differs(model="random:0.6B")
    assert model and "another model than node 0: random:0.6B, not random:tiny" in model
    older = join_listener.difference(of(), {**of(), "Quire": "0.0.9"}, 2)
    assert older and older.startswith("node 2 has Quire = 0.0.9, and node 0 has ")


def test_options_of_several_nodes_go_together() -> None:
    two = EngineConfig(
        tensor_parallel_size=4, nnodes=2, node_rank=1, master_addr="a", master_port=1
    )
    assert places(two) == [(1, NO_RANK), (1, 2), (1, 3)]
    for change, words in [
        ({"nnodes": 3}, "nnodes = 3: must divide tensor_parallel_size = 4"),
        ({"nnodes": 0}, "nnodes = 0: must be at least 1"),
        ({"node_rank": 2}, "node_rank = 2: must be at most 1"),
        ({"node_rank": -1}, "node_rank = -1: must be at least 0"),
        ({"master_addr": None}, "nnodes = 2: needs master_addr"),
        ({"master_port": None}, "nnodes = 2: needs master_port"),
        ({"master_port": 65_536}, "master_port = 65536: must be at most 65535"),
        ({"join_seconds": 0.0}, "join_seconds = 0.0: must be above 0"),
        ({"nnodes": 1, "node_rank": 0}, "master_addr = a: needs nnodes above 1"),
    ]:
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(two, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", "master_addr is neither an address nor a host name"),
        ("a..b", "master_addr is neither an address nor a host name"),
        ("x" * 80, "master_addr is neither an address nor a host name"),
        ("0.0.0.0", "master_addr = 0.0.0.0: must be the address of one interface"),
        ("::", "master_addr = ::: must be the address of one interface"),
    ],
)
def test_what_is_no_place_to_meet_is_told_before_anything_starts(host: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EngineConfig(tensor_parallel_size=2, nnodes=2, master_addr=host, master_port=5)
    assert str(refused.value).startswith(words)
