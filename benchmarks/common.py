"""What every benchmark here shares: what ran where, timing by captured chains, tables, JSON.

Invariant: a figure of record is a row of a JSON file that also holds machine, versions, commit and
command. Device times come from replays of a captured graph whose calls touch other weights each
time, so caches are cold as in a model; the median of the runs is the value, all runs are kept.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
COPY_BYTES = 4.3e12  # bytes a second that a large copy measures on an H200, read plus written
MATMUL_FLOPS = 790e12  # a second, a large bf16 product on the same card
FP8_FLOPS = 2 * MATMUL_FLOPS  # in e4m3: what it is made for; `cards.this_card` measures
_PACKAGES = ("torch", "triton", "transformers", "vllm", "grpcio", "numpy")

Row = dict[str, Any]


# ---------------------------------------------------------------- what ran where


def _output(*command: str) -> str | None:
    """What a program prints, or None where it is missing or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def machine() -> dict[str, Any]:
    """The device and its driver, and the host."""
    facts: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts["gpu"] = properties.name
        facts["gpus"] = torch.cuda.device_count()
        facts["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        facts["driver"] = driver.splitlines()[0] if driver else None
    return facts


def versions() -> dict[str, str | None]:
    """Of Python, CUDA and the packages that matter; None for those not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str:
    """The checkout's commit, `+dirty` with changes; BENCHMARK_COMMIT where git is missing."""
    head = _output("git", "rev-parse", "HEAD")
    if head is None:
        return os.environ.get("BENCHMARK_COMMIT", "unknown")
    return head + ("+dirty" if _output("git", "status", "--porcelain", "-uno") else "")


# ---------------------------------------------------------------- rows and files


def result_row(
    workload: str,
    model: str,
    engine: str,
    runs: Sequence[float],
    unit: str,
    floor: float | None = None,
    **more: Any,
) -> Row:
    """One row: the median of the runs, and the share of the floor that it reaches.

    A unit that ends in "/s" is a rate: more is better and the floor is the most there can be.
    """
    value = statistics.median(runs)
    share = None
    if floor is not None:
        share = value / floor if unit.endswith("/s") else floor / value
    return {
        "workload": workload,
        "model": model,
        "engine": engine,
        "value": value,
        "unit": unit,
        "floor": floor,
        "share_of_floor": share,
        "runs": list(runs),
        **more,
    }


def typed(arguments: Sequence[str]) -> str:
    """The command of these arguments, without the folders of the machine that it ran on."""
    words = ["python"]
    for word in arguments:
        option, equals, value = word.rpartition("=")
        if Path(value).is_absolute():
            inside = Path(value).is_relative_to(ROOT)
            value = str(Path(value).relative_to(ROOT)) if inside else Path(value).name
        words.append(f"{option}{equals}{value}")
    return " ".join(words)


def write_results(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    command: Sequence[str] | None = None,
    **more: Any,
) -> None:
    """Write rows as JSON, with machine, versions, commit and the command (default: sys.argv)."""
    document = {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "command": typed(sys.argv if command is None else command),
        "rows": list(rows),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A plain table, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(column), *(len(row[i]) for row in cells)) if cells else len(column)
        for i, column in enumerate(columns)
    ]
    print(f"\n{title}")
    print("  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)))
    for row, source in zip(cells, rows, strict=True):
        print(
            "  ".join(
                cell.ljust(width) if isinstance(value, str) else cell.rjust(width)
                for cell, width, value in zip(row, widths, source, strict=True)
            ),
            flush=True,
        )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


# ---------------------------------------------------------------- timing on the device


def capture(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Run `work` once on a side stream, to compile and allocate, then capture it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, runs: int = 7, warmups: int = 2) -> list[float]:
    """Microseconds of each of `runs` replays, by the device's events."""
    for _ in range(warmups):
        graph.replay()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(runs)
    ]
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e3 for begin, end in events]


def chain_us(calls: Sequence[Callable[[], object]], runs: int = 7) -> list[float]:
    """Microseconds a call, for calls captured one after the other; one figure for each replay.

    Give as many calls, on as many weights, as it takes to exceed the L2 cache (50 MB).
    """

    def work() -> None:
        for call in calls:
            call()

    graph = capture(work)
    times = [time / len(calls) for time in replay_us(graph, runs)]
    graph.reset()
    return times


# ---------------------------------------------------------------- compiling ahead


def precompile(calls: Sequence[Callable[[], object]], processes: int = 16) -> list[str]:
    """Compile the Triton kernels that `calls` launch, in forked processes; returns what failed.

    Must come before the first CUDA call of this process. The calls run on meta tensors (aligned,
    as large as the real ones); what they compile is found in Triton's cache afterwards.
    """
    import multiprocessing

    if not calls:
        return []
    global _CALLS
    _CALLS = calls
    chunk = max(1, len(calls) // (processes * 8))
    with multiprocessing.get_context("fork").Pool(processes, _compile_only) as pool:
        return [fault for fault in pool.map(_compile_call, range(len(calls)), chunk) if fault]


_CALLS: Sequence[Callable[[], object]] = ()


def _compile_only() -> None:
    """Make Triton, in this process, compile for the device it cannot see instead of launching."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    torch.set_num_threads(1)

    class Offline:
        target = GPUTarget("cuda", 90, 32)

        def get_current_target(self) -> GPUTarget:
            return self.target

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, _device: int | None = None) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

    driver.set_active(Offline())
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        del warmup
        return original(self, *args, grid=grid, warmup=True, **options)

    JITFunction.run = run


def _compile_call(index: int) -> str | None:
    try:
        _CALLS[index]()
    except Exception as error:  # reported: one variant that does not compile is a result
        return f"{index}: {error!r:.300}"
    return None
