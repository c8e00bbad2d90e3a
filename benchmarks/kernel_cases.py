"""The operations that `kernels.py` times: each fused kernel and product, and what it replaces."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from common import COPY_BYTES, MATMUL_FLOPS
from torch import Tensor

from quire.engine.model.config import ModelConfig
from quire.kernels import reference
from quire.kernels.ops import Ops

COLD_BYTES = 200 << 20
MAX_CALLS = 48  # of one chain
BF16, F32, I32, I64 = torch.bfloat16, torch.float32, torch.int32, torch.int64

BASELINE = "baseline"  # what the other calls do besides their work: taken off their times
Engines = Mapping[str, Callable[[int], object]]


@dataclass(frozen=True)
class Case:
    """One operation at one size. build(ops, device, copies) gives, for each engine, the call
    number i on its i-th copy of what must be cold."""

    name: str
    model: str
    rows: int
    moved: float  # bytes that must be read or written
    flops: float
    cold: float  # bytes of one copy
    build: Callable[[Ops, str, int], Engines]

    @property
    def copies(self) -> int:
        return max(2, min(MAX_CALLS, int(COLD_BYTES / max(self.cold, 1)) + 1))

    @property
    def floor_us(self) -> float:
        return max(self.moved / COPY_BYTES, self.flops / MATMUL_FLOPS) * 1e6


def _new(device: str, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """Random numbers (integers: zeros); on meta nothing at all."""
    empty = torch.empty(*shape, dtype=dtype, device=device)
    if device == "meta":
        return empty
    return empty.normal_() if dtype.is_floating_point else empty.zero_()


# ---------------------------------------------------------------- products


def _torch_product(
    x: Tensor, weight: Tensor, norm: Tensor | None, residual: Tensor | None, silu: bool
) -> Tensor:
    """What a plain PyTorch model runs."""
    if norm is not None:
        x = F.rms_norm(x, (x.shape[1],), norm, 1e-6)
    y = x @ weight.t()
    if silu:
        gate, up = y.chunk(2, -1)
        y = F.silu(gate) * up
    return y if residual is None else residual + y


def _product_case(
    model: str, name: str, n: int, k: int, rows: int, *, around: str, logits: bool = False
) -> Case:
    silu = around == "silu"
    columns = n // 2 if silu else n

    def build(ops: Ops, device: str, copies: int) -> Engines:
        weights = _new(device, copies, n, k)
        x, norm = _new(device, rows, k), _new(device, k) if around != "residual" else None
        residual = _new(device, rows, columns) if around == "residual" else None
        out_dtype = F32 if logits else None

        def ours(i: int) -> object:
            return ops.linear(
                x,
                weights[i],
                norm_weight=norm,
                eps=1e-6,
                residual=residual,
                silu=silu,
                out_dtype=out_dtype,
            )

        def plain(i: int) -> object:
            y = _torch_product(x, weights[i], norm, residual, silu)
            return y.float() if logits else y

        return {"quire": ours, "torch": plain}

    moved = 2 * n * k + 2 * rows * k + (4 if logits else 2) * rows * columns
    flops = 2 * n * k * rows
    return Case(f"linear-{name}", model, rows, moved, flops, 2 * n * k, build)


def product_cases(shape: str, batches: list[int]) -> Iterator[Case]:
    """The five products of a model, with the norm, activation or residual around each."""
    c = ModelConfig.named_shape(shape)
    q, kv, hidden = c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.hidden_size
    inner = c.intermediate_size
    for rows in batches:
        yield _product_case(shape, "qkv", q + 2 * kv, hidden, rows, around="norm")
        yield _product_case(shape, "o", hidden, q, rows, around="residual")
        yield _product_case(shape, "gate-up", 2 * inner, hidden, rows, around="silu")
        yield _product_case(shape, "down", hidden, inner, rows, around="residual")
        head = _product_case(shape, "head", c.vocab_size, hidden, rows, around="norm", logits=True)
        yield head


# ---------------------------------------------------------------- small kernels of a layer


def layer_cases(shape: str, batches: list[int]) -> Iterator[Case]:
    """Norm, activation, and q/k norm + RoPE + KV write."""
    c = ModelConfig.named_shape(shape)
    for rows in batches:
        yield _norm_case(shape, rows, c.hidden_size)
        yield _silu_case(shape, rows, c.intermediate_size)
        yield _rope_case(shape, rows, c)


def _norm_case(shape: str, rows: int, width: int) -> Case:
    def build(ops: Ops, device: str, copies: int) -> Engines:
        x, weight = _new(device, copies, rows, width), _new(device, width)
        return {
            "quire": lambda i: ops.rms_norm(x[i], weight, 1e-6),
            "torch": lambda i: F.rms_norm(x[i], (width,), weight, 1e-6),
        }

    return Case("rms-norm", shape, rows, 4 * rows * width, 0, 2 * rows * width, build)


def _silu_case(shape: str, rows: int, inner: int) -> Case:
    def plain(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    def build(ops: Ops, device: str, copies: int) -> Engines:
        x = _new(device, copies, rows, 2 * inner)
        return {"quire": lambda i: ops.silu_mul(x[i]), "torch": lambda i: plain(x[i])}

    return Case("silu-mul", shape, rows, 6 * rows * inner, 0, 4 * rows * inner, build)


def _rope_case(shape: str, rows: int, c: ModelConfig) -> Case:
    heads, dim, block = c.num_q_heads + 2 * c.num_kv_heads, c.head_dim, 64

    def build(ops: Ops, device: str, copies: int) -> Engines:
        qkv, norm = _new(device, rows, heads * dim), _new(device, dim)
        cos_sin = _new(device, 4096, dim, dtype=F32)
        positions = _new(device, rows, dtype=I32) + 1000
        slots = _new(device, rows, dtype=I64)
        if device != "meta":
            slots.copy_(torch.arange(1, rows + 1, device=device) * block)
        cache = _new(device, 2, copies, rows + 2, c.num_kv_heads, block, dim)

        def call(module: Ops) -> Callable[[int], object]:
            return lambda i: module.qk_norm_rope_kv_write(
                qkv, norm, norm, 1e-6, cos_sin, positions, slots, cache[0, i], cache[1, i]
            )

        return {"quire": call(ops), "torch": call(reference)}  # type: ignore[arg-type]

    moved = 4 * rows * heads * dim
    cold = 4 * (rows + 2) * c.num_kv_heads * block * dim
    return Case("qk-norm-rope-write", shape, rows, moved, 0, cold, build)


# ---------------------------------------------------------------- sampling and state


FILTERS = (  # name, top_k, top_p, standard deviation of the logits
    ("top-k-p", 20, 0.95, 3.0),
    ("top-p", 0, 0.95, 4.0),
    ("top-p-flat", 0, 0.95, 1.0),
    ("top-k-5000", 5000, 1.0, 1.0),
)


def sampling_cases(vocab: int, batches: list[int]) -> Iterator[Case]:
    """Everything between logits and token ids."""
    for rows in batches:
        size = 4 * rows * vocab
        yield Case("greedy", "any", rows, size, 0, size, _greedy(rows, vocab))
        yield Case("sample", "any", rows, size, 0, size, _sample(rows, vocab))
        for name, k, p, spread in FILTERS:
            build = _filter(rows, vocab, k, p, spread)
            yield Case(f"filter-{name}", "any", rows, 2 * size, 0, size, build)
        if rows <= 64:
            moved = 2 * size + 5 * rows * vocab
            yield Case("penalties", "any", rows, moved, 0, size, _penalties(rows, vocab))


def _greedy(rows: int, vocab: int) -> Callable[[Ops, str, int], Engines]:
    def build(ops: Ops, device: str, copies: int) -> Engines:
        logits = _new(device, copies, rows, vocab, dtype=F32)
        return {"quire": lambda i: ops.greedy(logits[i]), "torch": lambda i: logits[i].argmax(-1)}

    return build


def _sample(rows: int, vocab: int) -> Callable[[Ops, str, int], Engines]:
    def build(ops: Ops, device: str, copies: int) -> Engines:
        logits = _new(device, copies, rows, vocab, dtype=F32)
        slots = _new(device, rows, dtype=I64)
        temperature = _new(device, 1, dtype=F32).fill_(0.6)
        seeds = _new(device, 1, dtype=I64)

        def plain(i: int) -> Tensor:
            probs = torch.softmax(logits[i] / temperature, -1)
            return probs.div_(torch.empty_like(probs).exponential_()).argmax(-1)

        return {
            "quire": lambda i: ops.sample(logits[i], slots, slots, temperature, seeds),
            "torch": plain,
        }

    return build


def _sorted_filter(logits: Tensor, k: int, p: float) -> None:
    """Top-k and top-p by a sort, as commonly written."""
    order = logits.sort(dim=-1, descending=True).values
    if k:
        order = order.masked_fill(order < order[:, k - 1 : k], -torch.inf)
    probs = torch.softmax(order, -1)
    outside = probs.cumsum(-1) - probs >= p
    lowest = order.masked_fill(outside, torch.inf).amin(-1, keepdim=True)
    logits.masked_fill_(logits < lowest, -torch.inf)


def _filter(
    rows: int, vocab: int, k: int, p: float, spread: float
) -> Callable[[Ops, str, int], Engines]:
    """Filtering destroys its input: each call works on a fresh copy, whose time is taken off."""

    def build(ops: Ops, device: str, copies: int) -> Engines:
        source = _new(device, copies, rows, vocab, dtype=F32).mul_(spread)
        target = _new(device, rows, vocab, dtype=F32)
        slots = _new(device, rows, dtype=I64)
        one, none = _new(device, 1, dtype=F32).fill_(1.0), _new(device, 1, dtype=F32).fill_(0.0)
        top_k, top_p = _new(device, 1, dtype=I32).fill_(k), _new(device, 1, dtype=F32).fill_(p)

        def ours(i: int) -> None:
            target.copy_(source[i])
            ops.filter_logits(target, slots, one, top_k, top_p, none)

        def plain(i: int) -> None:
            target.copy_(source[i])
            _sorted_filter(target, k, p)

        return {BASELINE: lambda i: target.copy_(source[i]), "quire": ours, "torch": plain}

    return build


def _penalties(rows: int, vocab: int) -> Callable[[Ops, str, int], Engines]:
    def build(ops: Ops, device: str, copies: int) -> Engines:
        logits = _new(device, copies, rows, vocab, dtype=F32)
        slots = _new(device, rows, dtype=I64)
        if device != "meta":
            slots.copy_(torch.arange(rows, device=device))
        prompt = _new(device, rows, vocab, dtype=torch.bool)
        counts = _new(device, rows, vocab, dtype=I32)
        amount = _new(device, rows, dtype=F32).fill_(1.1)

        def call(module: Ops) -> Callable[[int], object]:
            return lambda i: module.apply_penalties(
                logits[i], slots, prompt, counts, amount, amount, amount
            )

        return {"quire": call(ops), "torch": call(reference)}  # type: ignore[arg-type]

    return build


def state_cases(batches: list[int]) -> Iterator[Case]:
    """The slots' bookkeeping around a decode step."""
    for rows in batches:
        yield Case("prepare-and-advance", "any", rows, 8 * 64 * rows, 0, 0, _state(rows))


def _state(rows: int) -> Callable[[Ops, str, int], Engines]:
    width, block = 64, 64

    def build(ops: Ops, device: str, copies: int) -> Engines:
        del copies
        slots, tokens = _new(device, rows, dtype=I32), _new(device, rows, dtype=I64)
        if device != "meta":
            slots.copy_(torch.arange(rows, device=device))
        last, computed = _new(device, rows + 1, dtype=I32), _new(device, rows + 1, dtype=I32)
        tables = _new(device, rows + 1, width, dtype=I32)
        ids, positions, lens = (_new(device, rows, dtype=I32) for _ in range(3))
        mapping, out = _new(device, rows, dtype=I64), _new(device, rows, width, dtype=I32)

        def call(module: Ops) -> Callable[[int], object]:
            def both(_: int) -> None:
                module.prepare_decode(
                    slots, last, computed, tables, block, ids, positions, mapping, lens, out
                )
                module.advance(slots, None, computed, None, tokens, last, None)

            return both

        return {"quire": call(ops), "torch": call(reference)}  # type: ignore[arg-type]

    return build


def all_cases(shapes: list[str], batches: list[int]) -> list[Case]:
    """Every case, smallest first within its kind."""
    cases: list[Case] = []
    for shape in shapes:
        cases += [*product_cases(shape, batches), *layer_cases(shape, batches)]
    return [*cases, *sampling_cases(151_936, batches), *state_cases(batches)]
