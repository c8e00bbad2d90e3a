"""Kernels compiled for a card that is not here are those that a server on that card looks for."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import CompileError, ConfigError
from quire.engine.model.load_config import model_config
from quire.engine.runner import compile_ahead, compile_orders, compile_process, exact_mode
from quire.engine.runner.compile_orders import DECIDING, Orders
from quire.engine.startup import build_rank, compile_for_card
from quire.engine.startup.compile_for_card import card_named, orders_for
from quire.kernels import support
from quire.kernels.cards import KNOWN, SUPPORTED
from quire.service.models import pocket

pytest.importorskip("triton")

from quire.kernels import offline  # needs triton

CONFIG = EngineConfig(
    model="random:tiny", max_num_seqs=1, max_num_batched_tokens=16, max_model_len=32
)
START = compile_process.start

# The worker itself, over a few light kernels.
LIGHT = """
import sys
from quire.engine.runner import compile_worker
found = compile_worker.kernels_of
def few(launches):
    light = "_advance_kernel", "_copy_kernel", "_mask_stop_kernel"
    return {name: one for name, one in found(launches).items() if name.split()[0] in light}
compile_worker.kernels_of = few
sys.exit(compile_worker.main())
"""

# Stands in for it: two kernels, without their code.
STAND_IN = """
import json, pathlib, sys
orders = json.loads(sys.stdin.readline())
for name in "ONE", "TWO":
    print(json.dumps({"found": name}), flush=True)
print(json.dumps({"kernels": 2}), flush=True)
for name in "ONE", "TWO":
    folder = pathlib.Path(orders["cache"], name)
    folder.mkdir()
    (folder / "kernel.cubin").write_text(name)
    print(json.dumps({"folder": str(folder), "name": name}), flush=True)
sys.stdin.read()
"""

CARDS = {  # as their drivers tell of them: name, capability, bytes of shared memory
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 166_912),
    "l4": ("NVIDIA L4", (8, 9), 101_376),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 232_448),
    "h200": ("NVIDIA H200", (9, 0), 232_448),
    "gh200": ("NVIDIA GH200 480GB", (9, 0), 232_448),
    "b200": ("NVIDIA B200", (10, 0), 232_448),
}


class Began(Exception):
    """As far as a server comes here."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Triton's, for the test alone."""
    from triton import knobs

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "cache"))
    monkeypatch.setattr(knobs.cache, "manager_class", None)
    monkeypatch.setattr(compile_ahead, "_ready_to_launch", lambda: None)
    return tmp_path / "cache"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of the process that compiles."""

    def take(program: str) -> None:
        words = (sys.executable, "-c", program)
        monkeypatch.setattr(compile_process, "start", lambda **more: START(words, **more))
        if program is not LIGHT:  # which is no reason to call a compiler
            monkeypatch.setattr(offline, "build_driver_module", lambda: None)
            monkeypatch.setattr(offline, "linkable", contextlib.nullcontext)

    return take


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Begins to build an engine on a card, and tells whether that has anything to compile."""

    def begins(config: EngineConfig, gpu: str = "h200") -> bool:
        name, capability, shared = CARDS[gpu]
        properties = SimpleNamespace(shared_memory_per_block_optin=shared)
        for told, value in (
            ("is_available", True),
            ("current_device", 0),
            ("device_count", 8),
            ("get_device_name", name),
            ("get_device_capability", capability),
            ("get_device_properties", properties),
        ):
            monkeypatch.setattr(torch.cuda, told, lambda *_, value=value: value)
        support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)  # forget other cards
        started: list[object] = []

        def start(**_more: Any) -> NoReturn:
            started.append(1)
            raise OSError("no process is started here")

        def stop(*_: Any, **__: Any) -> NoReturn:
            raise Began

        monkeypatch.setattr(compile_process, "start", start)
        monkeypatch.setattr(exact_mode, "operations", stop)
        with pytest.raises(Began):
            build_rank._basis_of(config, 0, stop, None, build_rank._TimeLine())
        support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)
        return bool(started)

    return begins


def compiled(config: EngineConfig, gpu: str, folder: Path | None) -> compile_for_card.Outcome:
    return compile_for_card.compile_for_card(config, gpu, folder, 2, lambda _share: None)


def test_a_server_finds_all_that_was_compiled_elsewhere(
    cache: Path, worker: Callable[[str], None], server: Callable[..., bool], tmp_path: Path
) -> None:
    worker(LIGHT)
    made = compiled(CONFIG, "h200", tmp_path / "made")
    assert made.new and made.kernels == len(list(made.folder.glob("*/*.cubin"))) > 1
    assert not compiled(CONFIG, "h200", made.folder).new
    shutil.move(made.folder, cache)  # it is mounted there
    assert not server(CONFIG)
    assert not server(CONFIG.replace(num_blocks=77, seed=5, overlap=False, dtype="bfloat16"))
    assert server(CONFIG.replace(block_size=32))
    assert server(CONFIG, "h100") and server(CONFIG, "gh200")


@pytest.mark.parametrize("gpu", CARDS)
def test_a_server_of_any_card_looks_for_what_was_compiled_for_it(
    gpu: str, cache: Path, worker: Callable[[str], None], server: Callable[..., bool]
) -> None:
    worker(STAND_IN)
    config = CONFIG.replace(model="random:0.6B", tensor_parallel_size=2 if gpu == "b200" else 1)
    assert compiled(config, gpu, None).kernels == 2
    assert not server(config, gpu)
    (cache / "TWO" / "kernel.cubin").write_text("damaged")
    assert server(config, gpu)


def test_a_server_of_another_version_compiles_for_itself(
    cache: Path,
    worker: Callable[[str], None],
    server: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker(STAND_IN)
    compiled(CONFIG, "h200", None)
    assert cache.exists() and not server(CONFIG)
    told, read = compile_orders.importlib.metadata.version, Path.read_bytes
    for package in ("triton", "torch"):
        changed = lambda name, of=package: "3.9.9" if name == of else told(name)  # noqa: E731
        with monkeypatch.context() as other:
            other.setattr("importlib.metadata.version", changed)
            assert server(CONFIG), package
    with monkeypatch.context() as other:
        other.setattr(compile_orders.sysconfig, "get_config_var", lambda _name: "cpython-399")
        assert server(CONFIG), "Python"
    with monkeypatch.context() as other:
        other.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.suffix == ".py"))
        assert server(CONFIG), "Quire"
    assert not server(CONFIG)


def test_kernels_are_taken_from_a_folder_that_cannot_be_written(
    cache: Path,
    worker: Callable[[str], None],
    server: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from triton import knobs

    worker(STAND_IN)
    compiled(CONFIG, "h200", None)

    def refuse(_folder: Path) -> NoReturn:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("quire.kernels.sealed.probe", refuse)
    assert not server(CONFIG)
    assert Path(knobs.cache.dir) != cache
    assert (Path(knobs.cache.dir) / "TWO" / "kernel.cubin").read_text() == "TWO"


# ------------------------------------------------------------ what is in the key

OTHER: dict[str, Any] = {
    "model": "random:1.7B",
    "revision": "main",
    "max_num_seqs": 2,
    "max_num_batched_tokens": 17,
    "max_model_len": 33,
    "block_size": 32,
    "num_blocks": 7,
    "gpu_memory_utilization": 0.5,
    "cpu_kv_gib": 2.0,
    "tensor_parallel_size": 2,
    "nnodes": 2,
    "node_rank": 1,
    "master_addr": "10.0.0.1",
    "master_port": 5000,
    "join_secret_file": "secret",
    "join_seconds": 5.0,
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "prefix_cache_seed": 3,
    "overlap": False,
    "two_phase": True,
    "dtype": "float16",
    "kv_cache_dtype": "fp8",
    "quantization": "fp8",
    "exact": "on",
    "device": "cuda",
    "seed": 9,
}
NODES = {"tensor_parallel_size": 2, "nnodes": 2, "master_addr": "10.0.0.2", "master_port": 1}


def test_whatever_the_process_that_compiles_is_told_is_in_the_key() -> None:
    """So an option that is not in the key cannot change what is compiled: nobody knows it there."""
    assert set(OTHER) == set(EngineConfig.__dataclass_fields__)
    one_node, same = CONFIG.replace(model="random:0.6B"), set()
    for name, value in OTHER.items():
        among_nodes = name in ("node_rank", "master_addr", "master_port", "join_secret_file")
        base = one_node.replace(**NODES) if among_nodes else one_node
        if name == "nnodes":
            base = one_node.replace(tensor_parallel_size=2)
        other = base.replace(**(NODES if name == "nnodes" else {name: value}))
        orders = [orders_for(config, card_named("h200")) for config in (base, other)]
        if len({one.key("1") for one in orders}) == 1:
            assert len({one.written() for one in orders}) == 1, f"{name} is told, not in the key"
            same.add(name)
    assert same == set(OTHER) - {*DECIDING, "dtype", "exact"}


def checkpoint(folder: Path, **changes: Any) -> EngineConfig:
    """A directory that has a model's configuration alone."""
    folder.mkdir()
    config = json.loads((pocket.directory() / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return CONFIG.replace(model=str(folder))


def test_a_model_is_known_by_its_configuration_wherever_it_is(tmp_path: Path) -> None:
    def key(config: EngineConfig) -> str:
        return orders_for(config, card_named("h200")).key("1")

    first = key(checkpoint(tmp_path / "one"))
    assert key(checkpoint(tmp_path / "two", eos_token_id=1, generation={"top_k": 3})) == first
    assert key(checkpoint(tmp_path / "three", num_hidden_layers=1)) != first
    config = tmp_path / "one" / "config.json"
    config.write_text((tmp_path / "three" / "config.json").read_text())
    assert key(CONFIG.replace(model=str(tmp_path / "one"))) != first, "its path is the same"
    orders = orders_for(CONFIG, card_named("h200"))
    assert Orders.read(orders.written()).key("1") == orders.key("1")
    whole, bare = (checkpoint(tmp_path / name, tie_word_embeddings=False) for name in "wb")
    index = {"weight_map": {"embed_tokens.weight": "a.safetensors"}}  # it has no head
    (tmp_path / "b" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_config(bare).embeds_only and not model_config(whole).embeds_only
    assert key(bare) == key(whole), "where its weights are not, nobody can tell"


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("gpu", "options", "message"),
    [
        ("h300", {}, "gpu = h300: not known; known: a100, a30, "),
        ("t4", {}, "NVIDIA T4 has compute capability 7.5: 8.0 or newer is needed"),
        ("a100", {"kv_cache_dtype": "fp8"}, "fp8: NVIDIA A100 has compute capability 8.0: a cache"),
        ("a10", {"model": "random:8B-fp8"}, "8.6: FP8 weights need 8.9 or newer"),
        ("h200", {"quantization": "int8"}, "quantization = int8: only on the CPU"),
        ("h200", {"device": "cpu"}, "device = cpu: kernels are compiled for a GPU"),
        ("h200", {"max_model_len": 1 << 30}, "max_model_len = 1073741824: the model has "),
        ("h200", {"exact": "on", "dtype": "float32"}, "exact = on: "),
    ],
)
def test_what_no_server_would_start_with_is_refused(
    gpu: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compiled(CONFIG.replace(**options), gpu, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_every_card_is_supported_or_refused_by_name() -> None:
    for gpu, card in KNOWN.items():
        if gpu in SUPPORTED:
            assert orders_for(CONFIG, card).arch == card.arch
            continue
        with pytest.raises(ConfigError, match=f"{card.name} has compute capability 7"):
            orders_for(CONFIG, card)


def test_a_machine_that_cannot_compile_is_told_why(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: Callable[[str], None]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/in: cannot be written: Not a directory$"):
        compiled(CONFIG, "h200", tmp_path / "file" / "in")
    with monkeypatch.context() as without:
        without.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(ConfigError, match="TRITON_INTERPRET is set"):
            compiled(CONFIG, "h200", None)
    with monkeypatch.context() as without:
        without.setattr("shutil.which", lambda _name: None)
        without.delenv("CC", raising=False)
        without.setattr("triton.backends.nvidia.driver.libcuda_dirs", _no_driver)
        with pytest.raises(ConfigError, match=r"needs a C compiler .*: no C compiler is found"):
            compiled(CONFIG, "h200", cache / "other")
    worker("import sys; sys.exit('OSError: the disk is full')")
    with pytest.raises(CompileError, match=r"^not all kernels .* OSError: the disk is full$"):
        compiled(CONFIG, "h200", None)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match="Triton, which cannot be imported here"):
        compiled(CONFIG, "h200", None)


def _no_driver() -> NoReturn:
    raise AssertionError("libcuda.so cannot found!")


# ------------------------------------------------------------ Triton's part


def test_a_kernel_is_found_in_whatever_folder_it_stands(cache: Path) -> None:
    from triton import knobs
    from triton.runtime.cache import get_cache_manager

    from quire.kernels import movable_cache

    entry = get_cache_manager("ab" * 32)
    entry.put_group("k.json", {"k.json": entry.put("{}", "k.json")})
    cache.rename(cache.with_name("elsewhere"))
    knobs.cache.dir = str(cache.with_name("elsewhere"))
    assert not get_cache_manager("ab" * 32).get_group("k.json"), "Triton finds it by itself"
    movable_cache.use()
    found = get_cache_manager("ab" * 32).get_group("k.json")
    assert found is not None and Path(found["k.json"]).read_text() == "{}"
    assert get_cache_manager("ab" * 32).get_group("other.json") is None
    assert get_cache_manager("cd" * 32).get_group("k.json") is None


def test_what_triton_links_with_the_driver_is_built_without_it(cache: Path) -> None:
    if torch.cuda.is_available() or not (shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("the driver is here, or no compiler")
    from triton.backends.nvidia import driver

    driver.libcuda_dirs.cache_clear()
    driver.library_dirs.cache_clear()
    with offline.linkable():
        offline.build_driver_module()
    (built,) = cache.glob("*/*.so")
    assert "TRITON_LIBCUDA_PATH" not in os.environ
    with pytest.raises(OSError, match=r"libcuda\.so\.1: cannot open"):  # as where it is needed
        ctypes.CDLL(str(built))
