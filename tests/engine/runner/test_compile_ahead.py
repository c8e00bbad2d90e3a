"""Kernels compiled by several processes: each once, all of them, and none where they are there."""

import contextlib
import dataclasses
import itertools
import logging
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.errors import RankError
from quire.engine.model.config import QWEN2, ModelConfig
from quire.engine.runner import compile_ahead, compile_process
from quire.engine.runner.compile_ahead import CompileAhead
from quire.engine.runner.compile_orders import (
    Compiled,
    Counted,
    Found,
    Orders,
    read_word,
    written,
)
from quire.engine.runner.compiled_cache import CompiledCache
from quire.engine.startup.build_rank import build_rank

CONFIG = EngineConfig(
    model="random:0.6B",
    device="cuda",
    max_num_seqs=1,
    max_num_batched_tokens=16,
    max_model_len=32,
)
ORDERS = Orders(dataclasses.asdict(CONFIG), "bfloat16", 90, 232_448, "NVIDIA H200", True)
KERNELS = 6

# Stands in for the worker: makes the folders that it tells of, and does not end by itself.
WORKER = f"""
import json, os, pathlib, sys
orders = json.loads(sys.stdin.readline())
for number in range({KERNELS}):
    if number == 1:
        for wanted in range({KERNELS}):
            print(json.dumps({{"found": f"kernel {{wanted}}"}}), flush=True)
        print(json.dumps({{"kernels": {KERNELS}}}), flush=True)
    folder = pathlib.Path(orders["cache"], f"K{{number}}")
    folder.mkdir(exist_ok=True)
    (folder / "kernel.cubin").write_text(str(number))
    print("noise of a library", flush=True)
    os.write(1, b"that is no text: \\xff\\n")
    word = {{"folder": str(folder), "name": f"kernel {{number}}"}}
    print(json.dumps(word), flush=True)
sys.stdin.read()
"""


def ahead(folder: Path, worker: str = WORKER) -> CompileAhead:
    early = compile_process.start((sys.executable, "-c", worker))
    orders = dataclasses.replace(ORDERS, cache=str(folder))
    return CompileAhead(orders, CompiledCache(folder), "version 1", early)


def test_all_that_is_told_is_kept_and_the_next_start_has_nothing_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = []
    first = ahead(tmp_path)
    assert first.at_work
    assert first.wait(seen.append) == KERNELS
    assert seen == sorted(seen) and seen[-1] == 1
    assert not caplog.text, "its end was waited for"
    second = ahead(tmp_path)
    assert not second.at_work and second.wait(seen.append) == 0
    (tmp_path / "K4" / "kernel.cubin").write_text("broken")
    assert ahead(tmp_path).wait(seen.append) == KERNELS


@pytest.mark.parametrize(
    "fault",
    [
        "import os; os._exit(3)",
        WORKER.replace("    word =", "    if number == 2: raise SystemExit\n    word ="),
    ],
)
def test_what_a_process_that_dies_has_not_done_is_said_and_not_waited_for(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert ahead(tmp_path, fault).wait(lambda _share: None) < KERNELS
    assert "were compiled ahead" in caplog.text
    assert ahead(tmp_path).at_work


def test_a_launch_waits_for_its_own_kernel_and_one_that_is_not_known_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = pytest.importorskip("triton.knobs")
    from quire.kernels import offline

    monkeypatch.setattr(offline, "name_of", lambda key, fn: f"{fn.name} {key}")
    seen: list[float] = []
    first, kernel = ahead(tmp_path), SimpleNamespace(name="kernel")
    with first.awaited(seen.append):
        assert not knobs.runtime.jit_cache_hook(key="2", fn=kernel, device=0), "it is launched"
        assert seen == [1 / KERNELS, 2 / KERNELS, 3 / KERNELS], "not before they are counted"
        knobs.runtime.jit_cache_hook(key="0", fn=kernel)
        assert len(seen) == 3
        knobs.runtime.jit_cache_hook(key="another", fn=kernel)
        assert seen[-1] == 1
    assert knobs.runtime.jit_cache_hook is None and first.waited > 0
    assert first.wait(seen.append) == KERNELS and not ahead(tmp_path).at_work


def test_a_launch_does_not_wait_for_a_process_that_has_died(tmp_path: Path) -> None:
    knobs = pytest.importorskip("triton.knobs")
    first = ahead(tmp_path, "import os; os._exit(3)")
    with first.awaited(lambda _share: None):
        assert not knobs.runtime.jit_cache_hook(key="2", fn=SimpleNamespace(name="kernel"))
    assert first.wait(lambda _share: None) == 0


def test_one_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "_LIMIT", 0.0)
    stuck = ahead(tmp_path, "import signal; signal.pause()")
    assert stuck.wait(lambda _share: None) == 0
    assert stuck._worker is not None and stuck._worker.returncode is not None


def test_a_process_that_was_started_early_gets_the_orders(tmp_path: Path) -> None:
    compile_process.start_early("{}", (sys.executable, "-c", WORKER))
    worker = compile_process.take_early()
    assert worker is not None and compile_process.take_early() is None
    orders = dataclasses.replace(ORDERS, cache=str(tmp_path))
    first = CompileAhead(orders, CompiledCache(tmp_path), "version 1", worker)
    assert first.wait(lambda _share: None) == KERNELS


@pytest.mark.parametrize(
    ("change", "done"),
    [
        ("", KERNELS),
        ("if number == 3: folder = folder.parent / 'other' / folder.name", KERNELS - 1),
        ("print(json.dumps({'folder': str(folder), 'name': 'in vain'}), flush=True)", KERNELS),
    ],
    ids=["all", "another-folder", "in-vain"],
)
def test_what_is_launched_and_in_the_cache_is_counted(
    tmp_path: Path, change: str, done: int
) -> None:
    """A list may have been begun where nothing can be kept any more, and have too much."""
    program = WORKER.replace("    word =", f"    {change}\n    word =")
    first = ahead(tmp_path, program.replace("sys.stdin.read()", ""))
    assert first.wait(lambda _share: None) == done
    assert ahead(tmp_path, program).at_work is (done < KERNELS)


def test_a_process_that_was_started_in_vain_is_ended(tmp_path: Path) -> None:
    assert ahead(tmp_path).wait(lambda _share: None) == KERNELS
    vain = compile_process.start((sys.executable, "-c", WORKER))
    orders = dataclasses.replace(ORDERS, cache=str(tmp_path))
    assert not CompileAhead(orders, CompiledCache(tmp_path), "version 1", vain).at_work
    assert vain.returncode is not None
    compile_process.start_early("{}", (sys.executable, "-c", WORKER))
    (early,) = compile_process._early
    assert compile_ahead.begin(CONFIG, torch.float32, torch.device("cpu"), pdl=False) is None
    assert early.returncode is not None and not compile_process._early


def test_what_keeps_it_from_starting_keeps_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = (str(tmp_path / "none"),)
    compile_process.start_early("{}", gone)
    assert compile_process.take_early() is None
    monkeypatch.setattr(compile_process.start, "__defaults__", (gone,))
    ahead = CompileAhead(ORDERS, CompiledCache(tmp_path), "version 1")
    assert not ahead.at_work and ahead.wait(lambda _share: None) == 0


def test_kernels_are_compiled_while_the_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def meet() -> NoReturn:
        events.append("met")
        raise RankError("enough")

    config = EngineConfig(model="random:tiny", device="cpu", tensor_parallel_size=2)
    monkeypatch.setattr(compile_ahead, "begin", lambda *_, **__: events.append("begun"))
    with pytest.raises(RankError):
        build_rank(config, 1, meet, lambda _stage, _share: None, lambda blocks, _print: blocks)
    assert events == ["begun", "met"]


def test_where_triton_keeps_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own rules; a user without a home has it in "~"."""

    def nobody(number: int) -> NoReturn:
        raise KeyError(number)

    for variable in ("HOME", "TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert compile_process.triton_cache() == Path("~/.triton/cache")
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    assert compile_process.triton_cache() == tmp_path / ".triton" / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "there"))
    assert compile_process.triton_cache() == tmp_path / "there"


def test_a_word_is_read_or_is_none() -> None:
    for word in (Compiled("/cache/FOLDER", "_kernel key"), Found("_kernel key"), Counted(7)):
        assert read_word(written(word)) == word
    for line in ("", "{", "7", "[]", "{}", '{"folder": "a"}'):
        assert read_word(line) is None
    assert Orders.read(ORDERS.written()) == ORDERS and ORDERS.config == CONFIG


def test_the_key_is_of_the_work_and_of_its_versions() -> None:
    key = ORDERS.key("1")
    assert dataclasses.replace(ORDERS, processes=4).key("1") == key
    assert ORDERS.key("2") != key
    for change in ({"arch": 100}, {"pdl": False}, {"dtype": "float16"}, {"card": "NVIDIA L4"}):
        assert dataclasses.replace(ORDERS, **change).key("1") != key  # type: ignore[arg-type]


# ------------------------------------------------------------ the worker itself

# Takes a few kernels for all of them, light ones.
WORK = """
import sys
from quire.engine.runner import compile_worker
found = compile_worker.kernels_of
sizes = []
def few(launches):
    kernels = found(launches)
    sizes.append(len(kernels))
    assert sizes[0] < sizes[-1] > 20 or len(sizes) == 1
    assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules, "seconds of imports"
    light = "_advance_kernel", "_copy_kernel", "_mask_stop_kernel"
    return {name: kernel for name, kernel in kernels.items() if name.split()[0] in light}
compile_worker.kernels_of = few
{change}
sys.exit(compile_worker.main())
"""

# One of them is begun before the others are known.
EARLY = """
import os
compile_worker.LONGEST = ("_copy_kernel",)
def beside(launches, found=compile_worker.kernels_of):
    if sizes:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises if none is begun
    return found(launches)
compile_worker.kernels_of = beside
"""


@contextlib.contextmanager
def worker(orders: Orders, folder: Path, change: str = "") -> Iterator["subprocess.Popen[str]"]:
    """The process itself, over those kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with subprocess.Popen(
        [sys.executable, "-c", WORK.replace("{change}", change)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
    ) as process:
        assert process.stdin is not None
        process.stdin.write(orders.written() + "\n")
        process.stdin.flush()
        yield process


@pytest.mark.long
@pytest.mark.parametrize("change", ["", EARLY], ids=["together", "one-before"])
def test_forks_compile_each_kernel_once_and_find_it_the_next_time(
    tmp_path: Path, change: str
) -> None:
    told: list[list[str]] = []
    for _ in range(2):
        with worker(dataclasses.replace(ORDERS, processes=2), tmp_path, change) as process:
            assert process.stdout is not None
            words = [read_word(line) for line in process.stdout]
            assert process.wait(PATIENCE) == 0
        compiled = [word for word in words if isinstance(word, Compiled)]
        told.append(sorted(Path(word.folder).name for word in compiled))
        assert len(told[-1]) == len(set(told[-1])) > 1
        others = [word for word in words if not isinstance(word, Compiled)]
        assert others[-1] == Counted(len(told[-1]))
        assert {word.found for word in others[:-1] if isinstance(word, Found)} == {
            word.name for word in compiled
        }
    assert told[0] == told[1]
    assert len(list(tmp_path.glob("*/*.cubin"))) == len(told[0])
    assert not list(tmp_path.glob("*/*.ttgir")), "more than what is launched"
    assert all(list((tmp_path / name).glob("*.cubin")) for name in told[0])


def test_forks_leave_signals_to_the_one_that_gave_the_orders_and_end_with_it(
    tmp_path: Path,
) -> None:
    change = (
        "import os, signal, time\n"
        "def stay(*_):\n"
        "    signal.alarm(120)\n"
        "    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:\n"
        "        os.kill(os.getpid(), number)\n"
        "    print('here', flush=True)\n"
        "    while True: time.sleep(1)\n"
        "from quire.engine.runner import compile_forks\n"
        "compile_forks.compile_some = stay"
    )
    with worker(dataclasses.replace(ORDERS, processes=2), tmp_path, change) as process:
        assert process.stdin is not None and process.stdout is not None
        lines = iter(process.stdout.readline, "")
        told = itertools.islice((line for line in lines if is_counted_or_here(line)), 3)
        assert sorted(told)[:2] == ["here\n"] * 2  # in any order: a fork may be there first
        process.kill()
        process.stdin.close()
        # Its other end the forks hold too.
        assert select.select([process.stdout], [], [], 60)[0], "they are still there"
        assert process.stdout.read() == ""


def is_counted_or_here(line: str) -> bool:
    return line == "here\n" or isinstance(read_word(line), Counted)


def run_python(program: list[str], orders: Orders, folder: Path) -> str:
    """What a program prints that gets its orders as a line."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *program],
        input=orders.written() + "\n",
        capture_output=True,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_number_is_read_by_one_process_and_the_slowest_kernels_have_the_first() -> None:
    pytest.importorskip("triton")
    from quire.engine.runner.compile_forks import SLOWEST, numbers, slowest_first

    pipe = numbers(300)
    fork = os.fork()
    if not fork:
        os._exit(int.from_bytes(os.read(pipe, 2)))
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    left = [os.read(pipe, 2) for _ in range(300)]
    assert [*map(int.from_bytes, left)] == [*range(1, 300), 0] and not left[-1]
    os.close(pipe)
    named = ["_copy_kernel {}", "_merge_kernel {}", f"{SLOWEST[0]} {{}}"]
    assert slowest_first(named) == named[::-1]
    kernels = Path(compile_ahead.__file__).parents[2] / "kernels"
    sources = "".join(file.read_text() for file in kernels.rglob("*.py"))
    assert all(f"def {name}(" in sources for name in SLOWEST), "no kernel is called so"


def test_what_launches_kernels_is_built_once_for_all_of_a_signature(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    from quire.engine.runner import compile_forks
    from quire.kernels import offline

    made = [SimpleNamespace(hash=digit * 64) for digit in "abcd"]
    signatures = [("*bf16",), ("*bf16", "i32"), ("*bf16",), ("*bf16", "i32")]
    kernels = [
        offline.Kernel(lambda one=one: one, signature, one.hash)  # type: ignore[misc]
        for one, signature in zip(made, signatures, strict=True)
    ]
    built: list[object] = []
    told: list[Any] = []
    monkeypatch.setattr(offline, "compile_launcher", built.append)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compile_forks.compile_some(kernels, compile_forks.numbers(len(kernels)), told.append)
    assert built == made[:2]
    assert len({word.folder for word in told}) == len(told) == 4


def test_a_worker_meets_layers_of_each_kind() -> None:
    pytest.importorskip("triton")
    from quire.engine.runner.compile_worker import one_of_each_kind

    moe = ModelConfig.named_shape("30B-A3B")
    assert moe.experts is not None
    mixed = dataclasses.replace(moe, experts=dataclasses.replace(moe.experts, dense_layers=(3,)))
    dense = dataclasses.replace(moe.experts, dense_layers=tuple(range(48)))
    for shape, experts, layers in (
        (ModelConfig.named_shape("8B"), {False}, 1),
        (moe, {True}, 1),
        (mixed, {True, False}, 2),
        (dataclasses.replace(moe, experts=dense), {False}, 1),
    ):
        few = one_of_each_kind(shape)
        assert few.num_layers == layers
        assert {few.experts_of(layer) is not None for layer in range(layers)} == experts
    windows = {"architecture": QWEN2, "sliding_window": 64, "full_layers": (1, 3)}
    few = one_of_each_kind(dataclasses.replace(ModelConfig.named_shape("tiny"), **windows))
    assert {few.window_of(layer) for layer in range(few.num_layers)} == {None, 64}
    assert few.num_layers == 2


ENGINE = """
import sys
from triton import knobs
from quire.engine.startup.build_engine import build_engine
from quire.engine.runner.compile_orders import Orders
missed = []
def listen(*, src, cache_hit, **_rest):
    if not cache_hit:
        missed.append(src.name)
knobs.compilation.listener = listen
build_engine(Orders.read(sys.stdin.read()).config, lambda stage, share: None)
print("missed", missed)
"""


@pytest.mark.gpu
def test_what_is_compiled_ahead_is_what_an_engine_launches(tmp_path: Path) -> None:
    for max_num_seqs in (1, 64):
        options = ORDERS.options | {
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": 512,
            "max_model_len": 8192,
            "num_blocks": 256,  # or it would take the card from all tests beside it
        }
        orders = dataclasses.replace(ORDERS, options=options)
        assert "missed []" in run_python(["-c", ENGINE], orders, tmp_path / str(max_num_seqs))
