"""Lists of launches, from which a first start compiles before torch is there."""

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.model.config import ModelConfig
from quire.engine.runner import compile_listed, listed
from quire.engine.runner.compile_orders import (
    Compiled,
    Counted,
    Found,
    Orders,
    deciding,
    family,
    read_word,
    versions,
)
from quire.engine.weights.random import hf_config
from quire.kernels.cards import KNOWN

H200 = KNOWN["h200"]
CARDS = ("h100", "h200")


def without_interpreter(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | more


def run_python(code: str, *arguments: str, **environment: str) -> Any:
    """The JSON that a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=without_interpreter(**environment),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ------------------------------------------------------------ what the lists hold

# By card and model: what an engine launches, and what the list has: names, and Triton's keys, into
# which go a kernel's source, what it calls, and all constants that it uses.
KEY = """
def key_of(kernel):
    return kernel.compiling.args[0].cache_key
"""
LAUNCHED = f"""{KEY}
import json, sys
import torch
from quire.engine.config import EngineConfig
from quire.engine.runner.compile_ahead import orders_of
from quire.engine.runner.compile_worker import kernels_of, launches_of
from quire.kernels import launch_list, offline
from quire.kernels.cards import KNOWN
found = dict()
for card, model in (pair.split() for pair in sys.argv[1:]):
    offline.compile_for(KNOWN[card])
    config, meta = EngineConfig(model="random:" + model), torch.device("meta")
    orders = orders_of(config, torch.bfloat16, meta, pdl=True, exact=False)
    kernels = kernels_of(launches_of(orders))
    written = json.dumps([launch_list.written(kernel.compiling) for kernel in kernels.values()])
    with offline.noted() as read:
        for launch in json.loads(written):
            launch_list.launch(launch)
    assert read.keys() == kernels.keys(), "what is written is read as another"
    found[card + model] = dict(zip(kernels, map(key_of, kernels.values())))
print(json.dumps(found))
"""
LISTED = f"""{KEY}
import json, sys
from quire.kernels import without_torch
without_torch.begin()
from quire.engine.runner import listed
from quire.kernels import launch_list, offline, steady_keys
from quire.kernels.cards import KNOWN
found = dict()
for card, model in (pair.split() for pair in sys.argv[1:]):
    offline.compile_for(KNOWN[card])
    with offline.noted() as kernels:
        for launch in listed.read(model, KNOWN[card].name):
            launch_list.launch(launch)
    found[card + model] = dict(zip(kernels, map(key_of, kernels.values())))
print(json.dumps(found))
"""


@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.long)])
def test_the_lists_hold_what_engines_launch_under_the_same_names(turn: int) -> None:
    """If this fails, write them anew: tools/list_launches.py."""
    triton = pytest.importorskip("triton")
    from quire.kernels.support import HOPPER_TRITON

    if triton.__version__ not in HOPPER_TRITON:
        pytest.skip("the lists are of Gluon's kernels too")
    pairs = [f"{CARDS[(at + turn) % 2]} {model}" for at, model in enumerate(listed.MODELS)]
    assert run_python(LISTED, *pairs) == run_python(LAUNCHED, *pairs)


def test_a_list_is_of_each_model_and_of_every_name_of_a_chip() -> None:
    for name in ("NVIDIA H200", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3"):
        assert all(len(listed.read(model, name)) > 50 for model in listed.MODELS)
    assert not listed.read("8B", "NVIDIA L4") and not listed.read("9B", "NVIDIA H200")


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "FOLDER", tmp_path)
    one = ["state.state:_a", ["*int32?", None, 7], {"PDL": True, "num_warps": 4}]
    other = ["state.state:_a", ["*int32", 1.5, 7], {"PDL": False}]
    listed.write("NVIDIA X1 80GB", {"0.6B": [one, other], "8B": [one]})
    assert sorted(listed.read("0.6B", "NVIDIA X1 PCIe"), key=str) == sorted([one, other], key=str)
    assert listed.read("8B", "NVIDIA X1") == [one]
    assert (tmp_path / "nvidia-x1.json").read_text().count("int32") == 2, "one line for both"


# ------------------------------------------------------------ whose list it is


def published(folder: Path, name: str, **changes: Any) -> str:
    """A directory with the configuration of a published model."""
    import torch

    written = hf_config(ModelConfig.named_shape(name), torch.bfloat16)
    (folder / "config.json").write_text(json.dumps(written | changes))
    return str(folder)


@pytest.mark.parametrize("name", ["0.6B", "32B", "30B-A3B"])
def test_a_published_model_is_known_by_its_configuration(tmp_path: Path, name: str) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e6}
    model = published(tmp_path, name, rope_parameters=rope, eos_token_id=7, initializer_range=0.1)
    assert listed.model_of(EngineConfig(model=model)) == name
    sizes = {"max_num_seqs": 64, "max_num_batched_tokens": 4096, "max_model_len": 4096}
    assert listed.model_of(EngineConfig(model=model, exact="off", **sizes)) == name
    in_fp8 = listed.model_of(EngineConfig(model=model, quantization="fp8"))
    assert in_fp8 == (f"{name}-fp8" if f"{name}-fp8" in listed.MODELS else "")


def test_a_model_of_the_hub_is_known_where_it_has_been_fetched(tmp_path: Path) -> None:
    code = """if True:
        import json, sys
        from quire.engine.config import EngineConfig
        from quire.engine.runner import compile_listed, listed
        config = EngineConfig(model="Qwen/Qwen3-8B", revision=sys.argv[1] or None)
        print(json.dumps(listed.model_of(compile_listed.on_this_machine(config))))
    """
    assert run_python(code, "", HF_HUB_CACHE=str(tmp_path)) == ""
    kept = tmp_path / "models--Qwen--Qwen3-8B"
    for name in ("refs", "snapshots/0123"):
        (kept / name).mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123")
    published(kept / "snapshots" / "0123", "8B")
    assert run_python(code, "", HF_HUB_CACHE=str(tmp_path)) == "8B"
    assert run_python(code, "other", HF_HUB_CACHE=str(tmp_path)) == ""


@pytest.mark.parametrize(
    "options",
    [
        {"model": "random:tiny"},
        {"model": "Qwen/Qwen3-8B"},
        {"dtype": "float16"},
        {"exact": "on"},
        {"kv_cache_dtype": "fp8"},
        {"block_size": 32},
        {"tensor_parallel_size": 2},
    ],
    ids=str,
)
def test_no_list_is_taken_for_what_launches_other_kernels(options: dict[str, Any]) -> None:
    assert listed.model_of(EngineConfig(**({"model": "random:8B"} | options))) == ""


# ------------------------------------------------------------ the fork that compiles from it

# A few light kernels stand for all of them. {change}: to the list, to the driver.
WORK = """
import sys
from quire.engine.runner import compile_listed, compile_main, early_start, listed
whole, start_digest = listed.read, early_start.start_digest
light = ["_advance_kernel", "_copy_kernel"]
def few(model, card):
    return [one for one in whole(model, card) if one[0].split(":")[1] in light]
def before_torch():
    start_digest()
    from quire.engine.runner import compile_worker
    found = compile_worker.kernels_of
    def noted(launches):
        kernels, wanted = found(launches), (*light, "_mask_stop_kernel")
        return {name: kernel for name, kernel in kernels.items() if name.split()[0] in wanted}
    compile_worker.kernels_of = noted
listed.read, early_start.start_digest = few, before_torch
compile_listed._ask_driver = lambda: ("NVIDIA H200", [9, 0, 232448])
CHANGE
sys.exit(compile_main.main())
"""
OPTIONS = json.dumps(dataclasses.asdict(EngineConfig(model="random:0.6B")))


@contextlib.contextmanager
def worker(
    folder: Path, change: str = "", options: str = OPTIONS
) -> Iterator["subprocess.Popen[str]"]:
    """The process, with orders that follow at once."""
    pytest.importorskip("triton")
    config = EngineConfig(model="random:0.6B")
    orders = Orders(
        deciding(config),
        "bfloat16",
        H200.arch,
        H200.shared,
        H200.name,
        pdl=True,
        cache=str(folder),
        processes=1,
    )
    with subprocess.Popen(
        [sys.executable, "-c", WORK.replace("CHANGE", change), options, ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=without_interpreter(TRITON_CACHE_DIR=str(folder), CUDA_VISIBLE_DEVICES=""),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(orders.written() + "\n")
        process.stdin.flush()
        yield process


def words(process: "subprocess.Popen[str]") -> tuple[list[str], set[str]]:
    """The names of what was compiled, and of what an engine launches."""
    assert process.stdout is not None and process.stderr is not None
    read = [read_word(line) for line in process.stdout]
    launched = {word.found for word in read if isinstance(word, Found)}
    assert [word.kernels for word in read if isinstance(word, Counted)] == [len(launched)]
    process.wait(PATIENCE)
    return [word.name for word in read if isinstance(word, Compiled)], launched


def test_what_is_listed_is_compiled_by_the_fork_and_the_rest_by_its_parent(tmp_path: Path) -> None:
    """And each once: the parent's own processes begin with what the list lacks."""
    with worker(tmp_path) as process:
        told, launched = words(process)
        assert process.returncode == 0
    assert len(set(told)) == len(told) and set(told) == launched
    assert {name.split()[0] for name in told} == {
        "_advance_kernel",
        "_copy_kernel",
        "_mask_stop_kernel",
    }
    assert len(list(tmp_path.glob("*/*.cubin"))) == len(told)


@pytest.mark.parametrize(
    "change",
    [
        "def gone(): raise OSError('no libcuda.so.1')\ncompile_listed._ask_driver = gone",
        pytest.param(
            "compile_listed._ask_driver = lambda: ('NVIDIA L4', [8, 9, 101376])",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "from quire.kernels import sealed\n"
            "def full(_): raise OSError('full')\n"
            "sealed.probe = full",
            marks=pytest.mark.long,
        ),
    ],
    ids=["no-driver", "no-list", "no-room"],
)
def test_without_the_list_the_parent_compiles_all(tmp_path: Path, change: str) -> None:
    with worker(tmp_path, change) as process:
        told, launched = words(process)
        assert process.returncode == 0
    assert len(told) > 2 and set(told) == launched


# The fork has told what it compiles, and is killed; or it never gets that far.
KILLED = """
import os, signal
compile_listed.compile_process.default_processes = lambda: os.kill(os.getpid(), signal.SIGKILL)
"""
HANGS = """
import signal
compile_listed._LIMIT = 0.2
compile_listed._ask_driver = signal.pause
"""


@pytest.mark.parametrize("change", [KILLED, HANGS], ids=["killed", "hangs"])
def test_what_a_fork_leaves_undone_its_parent_compiles(tmp_path: Path, change: str) -> None:
    with worker(tmp_path, change) as process:
        told, launched = words(process)
        assert process.returncode == 0
    assert set(told) == launched and len(launched) > 2


def test_a_fork_that_hangs_and_what_it_has_forked_end_with_the_engine(tmp_path: Path) -> None:
    change = (
        "import os, signal\n"
        "def hang(): os.write(2, b'here\\n'); signal.pause()\n"
        "compile_listed._ask_driver = hang"
    )
    with worker(tmp_path, change) as process:
        assert process.stderr is not None and process.stderr.readline() == "here\n"
        process.kill()
        assert select.select([process.stderr], [], [], 20)[0], "they are still there"
        assert not process.stderr.read()


@pytest.mark.long
def test_a_kernel_that_the_list_has_in_vain_is_not_waited_for(tmp_path: Path) -> None:
    change = "light.append('_best_of_row')"
    with worker(tmp_path, change) as process:
        told, launched = words(process)
        assert process.returncode == 0
    assert set(told) >= launched


def test_an_engine_of_no_list_has_no_fork() -> None:
    assert compile_listed.begin(EngineConfig(model="random:tiny"), "") is None


def test_what_an_engine_has_left_is_for_others_of_its_options_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    config = EngineConfig(model=published(tmp_path, "8B"))
    hub = EngineConfig(model="Qwen/Qwen3-8B")
    known = compile_listed.were_compiled
    assert not known(config) and not known(hub)
    orders = Orders(deciding(config), "bfloat16", 90, 232_448, "NVIDIA H200", pdl=True)
    left = tmp_path / "cache" / f"quire-{orders.key(versions())}.json"
    left.parent.mkdir()
    left.touch()
    assert known(config) and known(config.replace(model="random:8B")) and known(hub)
    assert known(config.replace(seed=7)) and not known(config.replace(max_num_seqs=7))
    assert not known(config.replace(model="random:0.6B"))
    monkeypatch.setattr(compile_listed, "versions", lambda: "others")
    assert not known(config)


def test_where_all_was_compiled_the_process_waits_for_orders_before_anything_else(
    tmp_path: Path,
) -> None:
    """By what can be told early: of another data type, say, there may be none."""
    config = EngineConfig(model="random:0.6B")
    (tmp_path / f"quire-{family(config, versions())}-any.json").touch()
    refuse = "def refuse(*_): raise SystemExit(7)\ncompile_listed.begin = refuse"
    with worker(tmp_path, refuse) as process:
        told, launched = words(process)
        assert process.returncode == 0
    assert set(told) == launched and len(launched) > 2


def test_torch_is_a_placeholder_of_nothing_else() -> None:
    code = """if True:
        import json, sys
        from quire.kernels import without_torch
        without_torch.begin()
        import torch.nn.functional as F
        from torch import Tensor, float32
        name = Tensor | None
        try:
            without_torch.begin()
        except RuntimeError as error:
            print(json.dumps([str(error), "numpy" in sys.modules]))
    """
    assert run_python(code) == ["torch is loaded already", False]
