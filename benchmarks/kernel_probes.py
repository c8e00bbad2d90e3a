"""Which kernels' results depend on more than their own row: asked of each, on random numbers.

rows: a row computed beside others against the same row beside fewer (products, norms, attention of
one-token rows). chunks: a prompt's last tokens computed over the cached rest against the whole, and
a last token by the decode kernel against the prefill kernel.

Invariant: a kernel that is not named gave the same bits in every case tried here.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from quire.kernels.ops import Ops, select

ROWS = (1, 2, 4, 8, 11, 16, 64)
WIDEST = 256
HIDDEN, INNER, Q_HEADS, KV_HEADS, DIM, VOCAB = 1024, 3072, 16, 8, 128, 8192
BLOCK = 16
CONTEXT = 90
EPS = 1e-6


class Probes:
    """Random inputs of the 0.6B shape's layers, on one device."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.ops: Ops = select(device)
        self.dtype, self.device = dtype, device
        self._random = torch.Generator().manual_seed(5)

    def draw(self, *shape: int) -> Tensor:
        """Normal numbers; a weight's rows are scaled so that products stay of order 1."""
        values = torch.randn(*shape, generator=self._random) * shape[-1] ** -0.5
        return values.to(self.device, self.dtype)

    # ------------------------------------------------------------ rows

    def products(self) -> Iterator[tuple[str, Callable[[int], Tensor]]]:
        """The model's products as functions of how many rows take part."""
        heads = (Q_HEADS + 2 * KV_HEADS) * DIM
        yield "linear qkv", self._product(heads, HIDDEN, norm=True)
        yield "linear o", self._product(HIDDEN, Q_HEADS * DIM, residual=True)
        yield "linear gate_up", self._product(2 * INNER, HIDDEN, norm=True, silu=True)
        yield "linear down", self._product(HIDDEN, INNER, residual=True)
        yield "linear head", self._product(VOCAB, HIDDEN, norm=True, wide=True)
        x, weight = self.draw(WIDEST, HIDDEN), self.draw(HIDDEN)
        yield "rms_norm", lambda rows: self.ops.rms_norm(x[:rows], weight, EPS)

    def _product(
        self,
        n: int,
        k: int,
        *,
        norm: bool = False,
        residual: bool = False,
        silu: bool = False,
        wide: bool = False,
    ) -> Callable[[int], Tensor]:
        x, weight, before = self.draw(WIDEST, k), self.draw(n, k), self.draw(WIDEST, n)
        norm_weight = 1 + self.draw(k) if norm else None

        def call(rows: int) -> Tensor:
            return self.ops.linear(
                x[:rows],
                weight,
                norm_weight=norm_weight,
                eps=EPS,
                residual=before[:rows].clone() if residual else None,
                silu=silu,
                out_dtype=torch.float32 if wide else None,
            )

        return call

    # ------------------------------------------------------------ attention

    def cache(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and a table of WIDEST sequences, of which each eighth is the same."""
        blocks = -(-CONTEXT // BLOCK)
        count = 8 * blocks + 1
        k, v = (self.draw(count, KV_HEADS, BLOCK, DIM) for _ in range(2))
        rows = torch.arange(WIDEST)[:, None] % 8
        table = (1 + rows * blocks + torch.arange(blocks)).to(self.device, torch.int32)
        return k * DIM**0.5, v, table

    def decode(self) -> Callable[[int], Tensor]:
        """Attention of one-token rows, as a function of how many there are."""
        k, v, table = self.cache()
        q = self.draw(WIDEST, Q_HEADS, DIM) * DIM**0.5
        lens = torch.full((WIDEST,), CONTEXT, dtype=torch.int32, device=self.device)
        return lambda rows: self.ops.decode_attention(
            q[:rows], k, v, table[:rows], lens[:rows], DIM**-0.5, 256
        )

    def prefill(self) -> Callable[[int], Tensor]:
        """The last `new` tokens of a context, over the rest."""
        k, v, table = self.cache()
        q = self.draw(CONTEXT, Q_HEADS, DIM) * DIM**0.5
        lens = torch.tensor([CONTEXT], dtype=torch.int32, device=self.device)

        def call(new: int) -> Tensor:
            starts = torch.tensor([0, new], dtype=torch.int32, device=self.device)
            tail = q[CONTEXT - new :].contiguous()
            return self.ops.prefill_attention(
                tail, k, v, table[:1], starts, lens, DIM**-0.5, new, CONTEXT
            )

        def decode() -> Tensor:
            return self.ops.decode_attention(
                q[-1:].contiguous(), k, v, table[:1], lens, DIM**-0.5, 256
            )

        return lambda new: decode() if new == 0 else call(new)


@torch.inference_mode()
def broken_kernels(dtype: torch.dtype, device: torch.device | None = None) -> dict[str, list[str]]:
    """By what changes (`rows`, `chunks`): the kernels that give other bits, and where."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    probes = Probes(dtype, device)
    by_rows = [*probes.products(), ("decode_attention", probes.decode())]
    found: dict[str, list[str]] = {"rows": [], "chunks": []}
    for name, call in by_rows:
        first = call(WIDEST)[0]
        others = [rows for rows in ROWS if not torch.equal(call(rows)[0], first)]
        if others:
            found["rows"].append(f"{name} (rows {', '.join(map(str, others))} and {WIDEST} differ)")
    call = probes.prefill()
    last = call(CONTEXT)[-1]
    others = [new for new in (1, 2, 10, 16, 17, 24, 33, 64) if not torch.equal(call(new)[-1], last)]
    if others:
        listed = ", ".join(map(str, others))
        found["chunks"].append(f"prefill_attention (chunks of {listed} and the whole differ)")
    if not torch.equal(call(0)[-1], last):
        found["chunks"].append("decode_attention and prefill_attention differ")
    return found
