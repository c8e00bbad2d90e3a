"""Where the kernel tests run: on the GPU, or under Triton's interpreter in a process of their own.

The interpreter is chosen by TRITON_INTERPRET=1 before any kernel module is imported, and an access
out of bounds kills its process. So on a machine without a GPU the tests marked `triton` are left
out of the ordinary run, and test_interpreted.py runs them all in one child process. Marked `gpu`
as well, a test is too large for the interpreter, or asks what only the device can show.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quire.kernels import support

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    from support import interpreter_bf16, interpreter_fp8, interpreter_speed

    interpreter_bf16.install()
    interpreter_fp8.install()
    interpreter_speed.install()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "triton: runs Triton kernels, on a GPU or interpreted")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    native = torch.cuda.is_available() and not INTERPRETED
    here = Path(__file__).parent
    kept, dropped = [], []
    for item in items:
        ours = here in item.path.parents and item.get_closest_marker("triton")
        (dropped if ours and not (native or INTERPRETED) else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture
def device() -> torch.device:
    """Where the kernels under test find their tensors."""
    native = torch.cuda.is_available() and not INTERPRETED
    return torch.device("cuda" if native else "cpu")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is chosen for an H200 and a Triton that has the kernels of sm_90; on a GPU for the
    Triton that is there. A test may assume another card."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        monkeypatch.setattr("triton.__version__", support.HOPPER_TRITON[0])
    yield
    support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)


@pytest.fixture
def ordered_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in one order, as matrix units have it: what is compared bit for bit needs it."""
    if INTERPRETED:
        from support import interpreter_order
        from triton.runtime.interpreter import InterpreterBuilder

        monkeypatch.setattr(InterpreterBuilder, "create_dot", interpreter_order.create_dot)


@dataclass(frozen=True)
class Paged:
    """A poisoned cache in which each row owns scattered blocks: what no row owns is NaN."""

    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    context_lens: Tensor

    def clean(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The caches without their poison, for an oracle."""
        return self.k_cache.to(dtype).nan_to_num(), self.v_cache.to(dtype).nan_to_num()


PagedFactory = Callable[..., Paged]


@pytest.fixture
def paged(device: torch.device) -> PagedFactory:
    """Build a cache for rows of the given contexts, with random keys and values."""

    def build(
        contexts: Sequence[int],
        *,
        kv_heads: int,
        block_size: int,
        dim: int,
        dtype: torch.dtype,
        width: int | None = None,
        seed: int = 0,
    ) -> Paged:
        rng = torch.Generator().manual_seed(seed)
        needed = [-(-n // block_size) for n in contexts]
        order = (torch.randperm(sum(needed), generator=rng) + 1).tolist()
        shape = (sum(needed) + 1, kv_heads, block_size, dim)
        caches = [torch.full(shape, float("nan"), dtype=dtype, device=device) for _ in range(2)]
        # Columns past a row's blocks name the null block, which is poisoned like the rest.
        tables = torch.zeros(len(contexts), width or max(1, *needed), dtype=torch.int32)
        for row, context in enumerate(contexts):
            for column in range(needed[row]):
                block = order.pop()
                tables[row, column] = block
                used = min(block_size, context - column * block_size)
                for cache in caches:
                    values = torch.randn(kv_heads, used, dim, generator=rng)
                    cache[block, :, :used] = values.to(device, dtype)
        return Paged(
            caches[0],
            caches[1],
            tables.to(device),
            torch.tensor(contexts, dtype=torch.int32, device=device),
        )

    return build
