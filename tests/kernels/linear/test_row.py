"""One row from attention to attention by one kernel: what it is for, and what comes of it."""

import re

import pytest
import torch
from torch import Tensor

from quire.kernels import support
from quire.kernels.linear.row_launch import EMPTY, RowUnavailable, Sizes, new_rooms
from quire.kernels.reference.linear import between_attentions
from quire.kernels.weight import RowWeights

BF16, FP16, META = torch.bfloat16, torch.float16, torch.device("meta")
SMALL, LARGE = Sizes(2048, 2048, 6144), Sizes(4096, 4096, 12288)  # of 1.7B and 8B
SIZES = {
    "1.7B": SMALL,
    "4B": Sizes(2560, 4096, 9728),
    "8B": LARGE,
    "14B": Sizes(5120, 5120, 17408),
    "32B": Sizes(5120, 8192, 25600),
    "llama 8B": Sizes(4096, 4096, 14336),
}


pytestmark = pytest.mark.usefixtures("hopper")


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_dense_layers_of_16_bits_take_it_on_sm_90(
    sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sizes.fit(BF16, META) and sizes.fit(FP16, META)
    assert not sizes.fit(torch.float32, META)
    assert not sizes.fit(BF16, torch.device("cpu"))
    support.assume((10, 0), support.HOPPER_SHARED, "another")
    assert not sizes.fit(BF16, META)
    support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)
    monkeypatch.setattr("triton.__version__", "3.5.0")
    assert not sizes.fit(BF16, META)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(1024, 2048, 3072),  # 0.6B: a kernel a product is as fast
        Sizes(2048 + 64, 2048, 6144),  # no whole steps
        Sizes(2048, 2048 + 64, 6144),
        Sizes(2048, 2048, 6144 + 64),
        Sizes(4608, 4096, 4096),  # a norm needs more room than any x
    ],
)
def test_other_sizes_do_not(sizes: Sizes) -> None:
    assert not sizes.fit(BF16, META)


def test_the_ring_leaves_attention_its_shared_memory() -> None:
    assert [sizes.stages(META) for sizes in SIZES.values()] == [10, 10, 10, 9, 8, 9]
    assert (SMALL.in_flight, LARGE.in_flight) == (2, 3)
    support.assume((9, 0), 99 << 10, "a small one")
    assert not LARGE.fit(BF16, META) and not SMALL.fit(BF16, META)


def test_exact_mode_declines_it() -> None:
    """Its order of sums is not that of many rows."""
    from quire.kernels.linear.exact import ExactProducts
    from quire.kernels.triton_ops import TritonOps

    counters = torch.empty(0, device=META)
    assert TritonOps(counters).row_rooms(2, SMALL, BF16, META) is not None
    exact = TritonOps(counters, products=ExactProducts())
    assert exact.row_rooms(2, SMALL, BF16, META) is None


def test_what_a_driver_does_not_launch_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hopper_row = pytest.importorskip("quire.kernels.linear.hopper_row")
    from quire.kernels.linear import row_ops
    from quire.kernels.triton_ops import TritonOps

    def fails(*_args: object, **_options: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(hopper_row, "row", fails)
    monkeypatch.setattr(row_ops, "_refusing", set())
    ops, x = TritonOps(torch.empty(0, device=META)), torch.empty(1, 2048, device=META)
    rooms = ops.row_rooms(1, SMALL, BF16, META)
    assert rooms is not None
    around = x, x, RowWeights(x, x, x, x), 1e-6, rooms[0]
    lost = "Triton Error [CUDA]: an illegal memory access was encountered"
    for words in ("out of memory", lost, "Triton Error [CUDA]: operation not supported"):
        assert ops.row_rooms(1, SMALL, BF16, META) is not None
        with pytest.raises(RuntimeError, match=re.escape(words)) as raised:
            ops.between_attentions(*around)
        assert isinstance(raised.value, RowUnavailable) == words.endswith("not supported")
    (line,) = caplog.messages
    assert line.endswith("its kernel is not launched: Triton Error [CUDA]: operation not supported")
    assert ops.row_rooms(1, SMALL, BF16, META) is None


def test_rooms_lie_side_by_side_and_are_empty() -> None:
    rooms = new_rooms(3, Sizes(4, 8, 6), torch.device("cpu"))
    assert [room.numbers.tolist() for room in rooms] == [[EMPTY] * 14] * 3
    rooms[1].numbers[-4:] = torch.tensor([1.0, 2, 3, 4], dtype=BF16).view(torch.int16)
    assert rooms[1].out(BF16).tolist() == [[1, 2, 3, 4]]
    assert rooms[0].out(BF16).isnan().all() and rooms[2].out(BF16).isnan().all()


# ------------------------------------------------------------ on the card


def noise(*shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device="cuda").mul_(scale).to(dtype)


def weights_of(sizes: Sizes, qkv: int, dtype: torch.dtype) -> RowWeights:
    hidden, attended, inner = sizes.hidden, sizes.attended, sizes.inner

    def matrix(rows: int, width: int) -> Tensor:
        return noise(rows, width, dtype=dtype, scale=width**-0.5)

    return RowWeights(
        matrix(hidden, attended),
        1 + noise(hidden, dtype=dtype, scale=0.1),
        matrix(2 * inner, hidden),
        matrix(hidden, inner),
        1 + noise(hidden, dtype=dtype, scale=0.1) if qkv else None,
        matrix(qkv, hidden) if qkv else None,
    )


def needs_the_kernel() -> torch.device:
    device = torch.device("cuda")
    if not SMALL.fit(BF16, device):
        pytest.skip("another card, or another Triton, than hopper_row.py is for")
    torch.manual_seed(5)
    return device


def distance(found: Tensor, wanted: Tensor) -> float:
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sizes", "qkv", "dtype", "pdl"),
    [
        (SMALL, 4096, BF16, True),
        (SMALL, 4096, FP16, False),
        (SMALL, 0, BF16, True),
        (SIZES["4B"], 6144, BF16, True),
        (LARGE, 6144, BF16, True),
        (SIZES["14B"], 7168, BF16, True),
        (SIZES["32B"], 10240, FP16, True),
        (SIZES["llama 8B"], 6144, BF16, False),
    ],
)
def test_gpu_it_is_what_its_products_make_of_a_row(
    sizes: Sizes, qkv: int, dtype: torch.dtype, pdl: bool
) -> None:
    device = needs_the_kernel()
    from quire.kernels.linear.hopper_row import row

    weights = weights_of(sizes, qkv, dtype)
    attended, residual = (noise(1, n, dtype=dtype) for n in (sizes.attended, sizes.hidden))
    wide = RowWeights(*(one if one is None else one.float() for one in weights))  # type: ignore[arg-type]
    wanted = between_attentions(attended.float(), residual.float(), wide, 1e-6)
    twin = between_attentions(attended, residual, weights, 1e-6)
    found = row(attended, residual, weights, 1e-6, new_rooms(1, sizes, device)[0], pdl=pdl)
    assert (found[1] is None) == (not qkv)
    for mine, exact, other in zip(found, wanted, twin, strict=True):
        if mine is not None and exact is not None and other is not None:
            assert distance(mine, exact) <= 1.1 * distance(other, exact) + 1e-4
    for programs in (1 << 5, 97):  # no bit depends on who computes what
        room = new_rooms(1, sizes, device)[0]
        again = row(attended, residual, weights, 1e-6, room, pdl=pdl, programs=programs)
        assert torch.equal(again[0], found[0])
        assert not qkv or torch.equal(again[1], found[1])  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "all bits"])
def test_gpu_what_is_no_number_arrives_too(value: float | str, dtype: torch.dtype) -> None:
    device = needs_the_kernel()
    from quire.kernels.linear.hopper_row import row

    weights, room = weights_of(SMALL, 4096, dtype), new_rooms(1, SMALL, device)[0]
    attended, residual = noise(1, 2048, dtype=dtype), noise(1, 2048, dtype=dtype)
    if isinstance(value, str):
        for tensor in (attended, residual, weights.o, weights.gate_up, weights.down):
            tensor.view(torch.int16)[-1, ::7] = EMPTY
    else:
        attended[0, 5] = value
        residual[0, 7] = value
    out, qkv = row(attended, residual, weights, 1e-6, room)
    assert qkv is not None and qkv.isnan().any() and not out.isfinite().all()


@pytest.mark.gpu
def test_gpu_steps_in_two_streams_do_not_wait_for_one_another() -> None:
    """Each needs all multiprocessors at once, and gets them."""
    device = needs_the_kernel()
    from quire.kernels.linear.hopper_row import row

    layers, streams = 12, [torch.cuda.Stream() for _ in range(2)]
    weights = weights_of(SMALL, 4096, BF16)
    attended, residual = noise(1, 2048), noise(1, 2048)
    wanted, _ = row(attended, residual, weights, 1e-6, new_rooms(1, SMALL, device)[0])
    torch.cuda.synchronize()
    found = []
    for _ in range(8):
        for stream in streams:
            with torch.cuda.stream(stream):
                for room in new_rooms(layers, SMALL, device):
                    found.append(row(attended, residual, weights, 1e-6, room, pdl=True)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(one, wanted) for one in found)
