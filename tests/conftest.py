"""Shared by all tests. With the checkout's root on sys.path, transformers would find and run a bare
`kernels`, so the root comes off; the packages are found through the installed mapping."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

gc.disable()  # what is imported stays: see pytest_collection

# Beside another process of tests, a second thread would only wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Options that the shell has set for servers and clients are not the tests'.
for name in [name for name in os.environ if name.startswith("QUIRE_")]:
    del os.environ[name]

# A shell that starts the tests in the background has them ignore SIGINT, and so would the programs
# that they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() != ROOT]
sys.path.append(str(ROOT / "tests" / "shared"))  # what tests share: `support`

import pytest  # noqa: E402

# Files that take longest, the longest first: processes that share the files end together.
LONGEST = (
    "kernels/test_interpreted.py",
    "engine/test_equivalences.py",
    "service/constraints/test_constrained_answers.py",
    "service/app/test_process_faults.py",
    "service/app/test_faults.py",
    "engine/runner/test_warmup.py",
    "engine/model/test_hf_equivalence.py",
    "engine/scheduling/test_scheduler_properties.py",
    "clients/test_cli.py",
    "service/app/test_ends.py",
    "pocket/test_system.py",
    "engine/parallel/test_rank_equality.py",
    "clients/test_loadtest.py",
    "service/app/test_two_processes.py",
    "service/app/test_rank_processes.py",
    "pocket/test_evaluation.py",
    "service/test_chaos.py",
    "service/app/test_process.py",
    "service/app/test_several_nodes.py",
    "engine/scheduling/test_waiting_queue.py",
    "service/answers/test_output_parser.py",
    "engine/client/test_places.py",
    "course/test_mini.py",
    "clients/replicas/test_killed_replicas.py",
    "service/openai/test_openai_process.py",
    "service/test_real_engine.py",
    "service/test_fuzz.py",
    "benchmarks/test_prefix_cache.py",
    "engine/runner/test_compile_ahead.py",
    "engine/runner/test_listed.py",
    "pocket/test_training.py",
    "service/test_many_streams.py",
)


def _place(item: pytest.Item) -> int:
    """Where an item's file stands among the longest; behind them all others."""
    name = item.path.relative_to(ROOT / "tests").as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """A fourth of the time that imports take would go into looking for garbage among a million
    objects that stay; later collections pass over them."""
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch  # seconds that a process which hands out the tests has no need of

    items.sort(key=_place)  # stable: all else stays in its order
    if torch.cuda.is_available():
        return
    if not os.environ.get("TESTS_LONG"):
        later = pytest.mark.skip(reason="long: runs with make test-long")
        for item in items:
            if item.get_closest_marker("long"):  # not `keywords`: folders' names are among them
                item.add_marker(later)
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With TESTS_AT_ONCE, why a test failed is told at once: a process that crashes behind it comes
    to no summary."""
    if report.failed and os.environ.get("TESTS_AT_ONCE"):
        print(f"\n{report.longreprtext[-1500:]}", flush=True)
