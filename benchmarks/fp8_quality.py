"""What FP8 costs in quality, of weights and of the cache: next-token distributions of Pocket.

    python benchmarks/fp8_quality.py [--conversations 16] [--output FILE]

Pocket has trained weights; the text is conversations of the grammars of its training, from a seed
that training never had, and what counts is the assistant's words, which it was trained to write.
All models compute on the CPU. The cache is float32; where a row says so it is e4m3, as
`kv_cache_dtype = fp8` has it, or float32 with keys and values rounded to e4m3 as they are written,
with one of the scales that such a cache might have: the largest number of a head's block, or of one
token's head, made e4m3's largest. Distances are
of whole distributions, token by token: KL in nats from fp32's, and how often the likeliest token is
another.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "pocket"))

import corpus
import torch
from common import Row, print_table, write_results
from tokenizers import Tokenizer
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.model.config import Fp8, ModelConfig
from quire.engine.model.forward_batch import ForwardBatch, KVCache
from quire.engine.model.registry import build_model
from quire.engine.weights.loader import load_checkpoint
from quire.kernels import reference
from quire.kernels.ops import Ops
from quire.kernels.reference.fp8 import FP8, LARGEST
from quire.service.models import pocket

SEED, BUDGET, BLOCK = 1_000_003, 700, 64
CPU = torch.device("cpu")
PLAIN = ("fp32", "bf16", "fp8 in fp32", "fp8 in bf16")
SCALES = {"a scale a head and block": (2, 3), "a scale a head and token": (3,)}


@dataclass
class Distance:
    """Sums over tokens."""

    tokens: int = 0
    nats: float = 0.0
    others: int = 0
    loss: float = 0.0

    def add(self, exact: Tensor, other: Tensor, following: Tensor) -> None:
        """exact, other: [T, V] logits; following: [T] ids of the text itself."""
        exact, other = exact.log_softmax(-1), other.log_softmax(-1)
        self.tokens += len(exact)
        self.nats += float((exact.exp() * (exact - other)).sum())
        self.others += int((exact.argmax(-1) != other.argmax(-1)).sum())
        self.loss -= float(other.gather(1, following[:, None]).sum())


class RoundedCache:
    """The twins, but that the cache holds e4m3 numbers with scales. over: dimensions of the cache
    [blocks, Hkv, block_size, D] whose numbers share one."""

    def __init__(self, over: tuple[int, ...]) -> None:
        self._over = over

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def qk_norm_rope_kv_write(self, *given: Any) -> Tensor:
        """As in `reference`; the last two are the caches, of one step that writes them whole."""
        q = reference.qk_norm_rope_kv_write(*given)
        for cache in given[-2:]:
            cache.copy_(self.rounded(cache))
        return q

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest numbers that such a cache can hold, in fp32."""
        largest = x.abs().amax(self._over, keepdim=True)
        scale = torch.where(largest == 0, 1.0, largest / LARGEST)
        return (x / scale).clamp(-LARGEST, LARGEST).to(FP8).float() * scale


def load(dtype: torch.dtype, fp8: Fp8 | None, ops: object = reference) -> CausalModel:
    config = replace(ModelConfig.from_directory(pocket.directory()), fp8=fp8)
    model = build_model(config, cast(Ops, ops), dtype=dtype, device=CPU)
    load_checkpoint(model, pocket.directory())
    return model


def logits_of(
    model: CausalModel, ids: list[int], cache_dtype: torch.dtype = torch.float32
) -> Tensor:
    """All next-token logits of a text in one step: [T, V]."""
    config, count = model.config, len(ids)
    blocks = -(-count // BLOCK) + 1
    size = (config.num_layers, blocks, config.num_kv_heads, BLOCK, config.head_dim)
    kv = KVCache(*(torch.zeros(size, dtype=cache_dtype) for _ in range(2)))
    positions = torch.arange(count, dtype=torch.int32)
    batch = ForwardBatch(
        token_ids=torch.tensor(ids, dtype=torch.int32),
        positions=positions,
        slot_mapping=positions.long() + BLOCK,
        context_lens=torch.tensor([count], dtype=torch.int32),
        block_tables=torch.arange(1, blocks, dtype=torch.int32)[None],
        prefill_start_loc=torch.tensor([0, count], dtype=torch.int32),
        logits_rows=None,
        num_decode_rows=0,
        max_query_len=count,
        max_context_len=count,
    )
    return model.logits(model.forward(batch, kv), None)


def answered(ids: list[int], opening: list[int], end: int) -> list[int]:
    """Places of a text whose next token is the assistant's, its ends included. opening: the ids
    that an answer begins with."""
    places, inside = [], False
    for place in range(len(opening) - 1, len(ids) - 1):
        if ids[place + 1 - len(opening) : place + 1] == opening:
            inside = True
        elif ids[place] == end:
            inside = False
        if inside:
            places.append(place)
    return places


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="What FP8 costs in quality, on Pocket.")
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    exact = load(torch.float32, None)
    made = Fp8(made_on_load=True)
    others = {
        "fp32": exact,
        "bf16": load(torch.bfloat16, None),
        "fp8 in fp32": load(torch.float32, made),
        "fp8 in bf16": load(torch.bfloat16, made),
    }
    others |= {
        f"fp32, rounded cache, {name}": load(torch.float32, None, RoundedCache(over))
        for name, over in SCALES.items()
    }
    caches = dict.fromkeys(others, torch.float32)
    for name in PLAIN:
        others[f"{name}, cache fp8"], caches[f"{name}, cache fp8"] = others[name], FP8
    distances = {name: Distance() for name in others}
    tokenizer = Tokenizer.from_file(str(pocket.directory() / "tokenizer.json"))
    opening = tokenizer.encode(f"{corpus.IM_START}assistant\n").ids
    end = tokenizer.token_to_id(corpus.IM_END)
    for index in range(options.conversations):
        ids = tokenizer.encode(corpus.conversation_text(SEED, index, BUDGET)).ids[:1500]
        places = torch.tensor(answered(ids, opening, end), dtype=torch.long)
        right, following = logits_of(exact, ids)[places], torch.tensor(ids)[places + 1]
        for name, model in others.items():
            got = logits_of(model, ids, caches[name])[places]
            distances[name].add(right, got, following)
    rows = [_row(name, distance) for name, distance in distances.items()]
    columns = ("model", "tokens", "KL from fp32, nats", "likeliest is another", "loss, nats")
    print_table("Next-token distributions of Pocket", columns, [list(row.values()) for row in rows])
    if options.output:
        write_results(options.output, rows, ["benchmarks/fp8_quality.py"])


def _row(name: str, distance: Distance) -> Row:
    return {
        "weights": name,
        "tokens": distance.tokens,
        "kl_nats": round(distance.nats / distance.tokens, 6),
        "other_best": round(distance.others / distance.tokens, 5),
        "loss_nats": round(distance.loss / distance.tokens, 5),
    }


if __name__ == "__main__":
    main()
