"""FP8 products by cuBLASLt's C interface: what it is asked, and what becomes of what it refuses."""

import contextlib
import ctypes
import logging
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.kernels.linear import cublas_lt
from quire.kernels.linear.cublas_lt import Algorithm, CublasLt
from quire.kernels.weight import Quantized, Weight

BF16 = torch.bfloat16
GPU = torch.device("cuda", 0)
N, K, ROWS = 256, 512, 16
REFUSED = 15  # CUBLAS_STATUS_NOT_SUPPORTED


class Call:
    """A function of a C library, which notes what it was called with."""

    def __init__(self, then: Callable[..., Any] = lambda *_: 0) -> None:
        self.then = then
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self.then(*arguments)


class Library:
    """cuBLASLt in the library's place: it knows a way for every product."""

    def __init__(self) -> None:
        self.made, self.functions = 0, dict[str, Call]()
        self.attributes: dict[int, int] = {}
        self.scales: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Call:
        own = "_creates" if name.endswith("Create") else f"_{name}"
        call = Call(getattr(self, own)) if own in vars(Library) else Call()
        return self.functions.setdefault(name, call)

    def _creates(self, made: Any, *_: object) -> int:
        self.made += 1
        made._obj.value = self.made
        return 0

    def _cublasLtMatmulDescSetAttribute(self, _of: object, name: int, at: Any, size: int) -> int:
        assert size == ctypes.sizeof(at._obj)
        self.attributes[name] = at._obj.value
        return 0

    def _cublasLtMatmulAlgoGetHeuristic(self, *arguments: Any) -> int:
        arguments[-1]._obj.value = 1
        return 0

    def _cublasLtMatmul(self, *_: object) -> int:
        self.scales.append((self.attributes[17], self.attributes[18]))
        return 0

    def _cublasLtGetStatusName(self, status: int) -> bytes:
        return b"CUBLAS_STATUS_%d" % status


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found, stream = Library(), SimpleNamespace(cuda_stream=77)

    def loaded(name: str, mode: int) -> Library:
        assert (name, mode) == ("libcublasLt.so.12", os.RTLD_NOLOAD)
        return found

    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(cublas_lt.ctypes, "CDLL", loaded)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())
    return found


def operands(rows: int = ROWS, device: str = "cpu") -> tuple[Quantized, Weight]:
    """Of one size each, whose scales differ in groups and blocks."""
    draw = torch.Generator().manual_seed(7)
    x, data = (torch.randn(size, K, generator=draw) for size in (rows, N))
    by_group = torch.rand(K // 128, -(-rows // 16) * 16, generator=draw).to(device).t()[:rows]
    scale = torch.rand(N // 128, K // 128, generator=draw).to(device)
    narrow = (part.to(torch.float8_e4m3fn).to(device) for part in (x, data))
    return Quantized(next(narrow), by_group), Weight(next(narrow), scale)


def pointers(x: Quantized, weight: Weight) -> tuple[int, int]:
    assert weight.scale is not None
    return weight.scale.data_ptr(), x.scale.data_ptr()


def test_a_result_is_as_long_as_the_librarys() -> None:
    """Else it writes behind: 64 bytes of an algorithm, 8, 4, 4 and 16."""
    assert ctypes.sizeof(Algorithm) == 96 and Algorithm.algorithm.offset == 0


def test_the_weight_is_transposed_and_each_has_its_own_scales(library: Library) -> None:
    (x, weight), out = operands(), torch.empty(ROWS, N, dtype=BF16)
    assert CublasLt(GPU).product(x, weight, out)
    blocks, groups = pointers(x, weight)
    assert library.attributes == {3: 1, 31: 5, 32: 4, 17: blocks, 18: groups}
    layouts = [call[1:] for call in library.functions["cublasLtMatrixLayoutCreate"].calls]
    assert layouts == [(28, K, N, K), (28, K, ROWS, K), (14, N, ROWS, N)]
    (matmul,) = library.functions["cublasLtMatmul"].calls
    assert [matmul[2]._obj.value, matmul[7]._obj.value] == [1.0, 0.0]
    assert (matmul[3], matmul[5]) == (weight.data.data_ptr(), x.data.data_ptr())
    assert (matmul[8], matmul[10]) == (out.data_ptr(), out.data_ptr())
    assert matmul[13:] == (None, 0, 77)  # no room beside, on torch's stream


def test_the_library_is_asked_once_a_size_and_told_the_scales_of_each_call(
    library: Library,
) -> None:
    lt, out = CublasLt(GPU), torch.empty(2 * ROWS, N, dtype=BF16)
    given = [operands(), operands(), operands(2 * ROWS)]
    assert all(lt.product(*each, out) for each in (*given, *given))
    assert len(library.functions["cublasLtMatmulAlgoGetHeuristic"].calls) == 2
    assert library.scales == [pointers(*each) for each in (*given, *given)]


@pytest.mark.parametrize("refuses", ["MatmulDescSetAttribute", "MatmulAlgoGetHeuristic", "none"])
def test_a_size_that_is_refused_is_said_once(
    library: Library, caplog: pytest.LogCaptureFixture, refuses: str
) -> None:
    name = "cublasLtMatmulAlgoGetHeuristic" if refuses == "none" else f"cublasLt{refuses}"
    library.functions[name] = Call(lambda *_: 0 if refuses == "none" else REFUSED)
    lt = CublasLt(GPU)
    with caplog.at_level(logging.WARNING):
        assert not any(lt.product(*operands(), torch.empty(ROWS, N)) for _ in range(2))
    (line,) = caplog.messages
    said = "it knows none" if refuses == "none" else "CUBLAS_STATUS_15"
    assert line == f"FP8 products of 256 x 512 with 16 rows are given room: {name}: {said}"
    assert "cublasLtMatmul" not in {name for name, call in library.functions.items() if call.calls}


def test_what_fails_while_it_is_launched_is_raised(library: Library) -> None:
    library.functions["cublasLtMatmul"] = Call(lambda *_: 13)
    with pytest.raises(RuntimeError, match="cublasLtMatmul: CUBLAS_STATUS_13"):
        CublasLt(GPU).product(*operands(), torch.empty(ROWS, N))


def absent(_name: str, **_: int) -> Library:
    raise OSError("libcublasLt.so.12: cannot open shared object file")


def lame(_name: str, **_: int) -> Library:
    library = Library()
    library.functions["cublasLtCreate"] = Call(lambda *_: 1)
    return library


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("found", [absent, lame])
def test_without_the_librarys_interface_products_are_torchs(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    found: Callable[..., Library],
) -> None:
    pytest.importorskip("triton")
    from quire.kernels.linear import fp8_library

    def scaled(x: Tensor, weight: Tensor, *_: Tensor, out_dtype: torch.dtype) -> Tensor:
        return torch.full((x.shape[0], weight.shape[1]), 3.0, dtype=out_dtype)

    monkeypatch.setattr(cublas_lt.ctypes, "CDLL", found)
    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    fp8_library._own.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made = fp8_library.product(*padded(ROWS - 3), BF16)
            assert made.shape == (ROWS - 3, N) and bool((made == 3).all())
    fp8_library._own.cache_clear()
    (line,) = caplog.messages
    assert line.startswith("FP8 products of few rows are given room beside, and slower: ")


def test_few_rows_alone_are_given_no_room(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the library writes for the rows that pad is left out."""
    pytest.importorskip("triton")
    from quire.kernels.linear import fp8_library

    many: list[int] = []

    def scaled(x: Tensor, weight: Tensor, *_: Tensor, out_dtype: torch.dtype) -> Tensor:
        many.append(x.shape[0])
        return torch.empty(x.shape[0], weight.shape[1], dtype=out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    fp8_library._own.cache_clear()
    most = fp8_library._WITHOUT_ROOM
    for rows in (ROWS - 3, most, most + 1):
        assert fp8_library.product(*padded(rows), BF16).shape == (rows, N)
    fp8_library._own.cache_clear()
    assert many == [most + 16]
    assert len(library.functions["cublasLtMatmul"].calls) == 2


def padded(rows: int) -> tuple[Quantized, Weight]:
    """As quantization gives them: with room for the rows that pad."""
    x, weight = operands(-(-rows // 16) * 16)
    return Quantized(x.data[:rows], x.scale[:rows]), weight


@pytest.mark.triton
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [128, 160, 192, 240, 256, 512])  # of fewer, given room, K is split
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (24576, 4096), (4096, 12288), (384, 1024)])
def test_without_room_the_bits_are_those_with_it(n: int, k: int, rows: int) -> None:
    from quire.kernels import reference
    from quire.kernels.linear import fp8_library, fp8_quantize

    if not fp8_library.available(GPU):
        pytest.skip("this card's library has no product of scaled blocks")
    lt = fp8_library._own(GPU)
    assert lt is not None
    draw = torch.Generator(GPU).manual_seed(rows)
    wide, x = (torch.randn(size, k, generator=draw, device=GPU) for size in (n, rows))
    weight = reference.quantize_blocks(wide)
    narrow = fp8_quantize.quantize(x.to(BF16), by_group=True)
    found = torch.full((rows, n), float("nan"), dtype=BF16, device=GPU)
    assert lt.product(narrow, weight, found)
    transposed = weight.data.t(), narrow.scale, weight.scale.t()
    assert torch.equal(found, torch._scaled_mm(narrow.data, *transposed, out_dtype=BF16))
    graph, again = torch.cuda.CUDAGraph(), torch.zeros_like(found)
    with torch.cuda.graph(graph):
        lt.product(narrow, weight, again)
    graph.replay()
    assert torch.equal(found, again)
