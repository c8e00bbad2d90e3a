"""Floors: the least time that each workload can take on a card, from the model's shape alone.

Invariant: a floor counts only what cannot be avoided (weights read once a step, KV read once, the
products' and attention's arithmetic) at what the card measures for a large copy or product.
A measured time under its floor means that the measurement is wrong.

    python benchmarks/floors.py [--shape 0.6B ...]
"""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cards import H200, Card
from common import print_table

from quire.engine.model.config import ModelConfig

SHAPES = ("0.6B", "1.7B", "4B", "8B", "14B", "32B")
OTHER_SHAPES = (
    "8B-fp8",
    "30B-A3B",
    "30B-A3B-fp8",
)  # that are measured where they are asked for by name
ELEMENT = 2  # bytes of a bf16 number
DECODES = ((1, 128, 512), (8, 1024, 256), (64, 1024, 256), (256, 1024, 256))  # rows, prompt, new


@dataclass(frozen=True)
class Mixture:
    """Experts of all layers. parameters: of one expert's matrices in every layer that has them."""

    count: int
    per_token: int
    parameters: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Mixture | None":
        """Of a model's shape; None where it is dense."""
        experts = config.experts
        if experts is None:
            return None
        layers = sum(config.experts_of(layer) is not None for layer in range(config.num_layers))
        parameters = 3 * experts.intermediate_size * config.hidden_size * layers
        return cls(experts.count, experts.per_token, parameters)

    def met(self, rows: int) -> float:
        """Experts that so many tokens meet in a layer on average, each choosing evenly."""
        return self.count * (1 - (1 - self.per_token / self.count) ** rows)

    def beside(self, rows: int) -> float:
        """Parameters of the experts met, beyond those that one token takes."""
        return (self.met(rows) - self.per_token) * self.parameters


@dataclass(frozen=True)
class Floors:
    """Floors of one model in bf16, or with FP8 weights in its layers (the head and activations
    beside products stay bf16, and so does the cache unless said otherwise). Times in seconds, rates
    in tokens a second."""

    layer_parameters: int  # of all layers' matrices; of experts those that a token takes
    head_parameters: int
    layers: int
    attention_width: int  # query heads times their size
    kv_bytes: int  # a token
    card: Card
    mixture: Mixture | None = None
    fp8: bool = False

    @classmethod
    def of(cls, config: ModelConfig, card: Card = H200, *, kv_element: int = ELEMENT) -> "Floors":
        """The floors of a model's shape on a card; norms, biases and scales are too small to count.
        kv_element: bytes of a number of the cache.

        Raises ValueError for FP8 with a skip list, or on a card whose rate with it is not known.
        """
        if config.fp8 is not None and set(config.fp8.skipped) - {"lm_head"}:
            raise ValueError("floors are of models whose layers are FP8 throughout, or not at all")
        if config.fp8 is not None and not card.fp8_flops:
            raise ValueError(f"{card.name}: its rate of FP8 products is not measured")
        heads = 2 * config.num_q_heads + 2 * config.num_kv_heads
        per_layer = heads * config.head_dim * config.hidden_size
        dense = 3 * config.intermediate_size * config.hidden_size
        mixture = Mixture.of(config)
        layers = [config.experts_of(layer) for layer in range(config.num_layers)]
        parameters = config.num_layers * per_layer
        parameters += sum(e.count * config.hidden_size if e else dense for e in layers)  # routers
        if mixture is not None:
            parameters += mixture.per_token * mixture.parameters
        return cls(
            layer_parameters=parameters,
            head_parameters=config.vocab_size * config.hidden_size,
            layers=config.num_layers,
            attention_width=config.num_q_heads * config.head_dim,
            kv_bytes=2 * config.num_layers * config.num_kv_heads * config.head_dim * kv_element,
            card=card,
            mixture=mixture,
            fp8=config.fp8 is not None,
        )

    @property
    def layer_element(self) -> int:
        """Bytes of a number of the layers' matrices."""
        return 1 if self.fp8 else ELEMENT

    @property
    def layer_flops(self) -> float:
        """Operations a second of the layers' products."""
        return self.card.fp8_flops if self.fp8 else self.card.matmul_flops

    @property
    def weight_bytes(self) -> int:
        """All matrices and the head (the embedding gives a row a token)."""
        parameters = self.layer_parameters
        if self.mixture is not None:
            others = self.mixture.count - self.mixture.per_token
            parameters += others * self.mixture.parameters
        return parameters * self.layer_element + self.head_parameters * ELEMENT

    def read_bytes(self, rows: int) -> float:
        """Read once in a step of so many rows: all of it, of the experts those that are met."""
        beside = 0.0 if self.mixture is None else self.mixture.beside(rows)
        layers = (self.layer_parameters + beside) * self.layer_element
        return layers + self.head_parameters * ELEMENT

    def products(self, rows: int) -> float:
        """All products of a decode step of so many rows: bytes or arithmetic, what is more."""
        computed = self.layer_parameters / self.layer_flops
        computed += self.head_parameters / self.card.matmul_flops
        return max(self.read_bytes(rows) / self.card.copy_bytes, 2 * rows * computed)

    def kv_read(self, tokens: int) -> float:
        """Reading so many tokens' keys and values, in all layers."""
        return tokens * self.kv_bytes / self.card.copy_bytes

    def decode(self, rows: int, context: int) -> float:
        """One decode step of `rows` requests of `context` tokens each."""
        return self.products(rows) + self.kv_read(rows * context)

    def decode_loop(self, rows: int, prompt: int, new: int) -> float:
        """A step's mean while each row grows from its prompt by `new` tokens after the first."""
        return self.products(rows) + self.kv_read(rows) * (prompt + (new + 1) / 2)

    def prefill(self, tokens: int, cached: int = 0) -> float:
        """One prompt's new tokens, causal, over `cached` earlier ones; the last meets the head."""
        attended = tokens * cached + tokens * (tokens + 1) // 2
        wide = 2 * self.head_parameters + 4 * self.attention_width * self.layers * attended
        narrow = 2 * self.layer_parameters * tokens
        return wide / self.card.matmul_flops + narrow / self.layer_flops

    def first_token(self, tokens: int, cached: int = 0) -> float:
        """Time to first token of a lone prompt: its arithmetic, or reading weights and prefix."""
        rows = tokens - cached
        read = self.read_bytes(rows) / self.card.copy_bytes + self.kv_read(cached)
        return max(self.prefill(rows, cached), read)

    def prefill_rate(self, length: int) -> float:
        """Prompt tokens a second, many prompts of one length."""
        return length / self.prefill(length)

    def batch_run(self, prompts: list[int], outputs: list[int]) -> float:
        """All prompts at once, then steps until the longest output ends. Seconds."""
        total = sum(self.prefill(length) for length in prompts)
        for step in range(1, max(outputs)):
            active = [p + step for p, o in zip(prompts, outputs, strict=True) if o > step]
            total += self.products(len(active)) + self.kv_read(sum(active))
        return total


def nano_256() -> tuple[list[list[int]], list[int]]:
    """The workload of nano-vllm's bench.py: 256 prompts of token ids, and each one's max_tokens."""
    draw = random.Random(0)
    prompts = [
        [draw.randint(0, 10_000) for _ in range(draw.randint(100, 1024))] for _ in range(256)
    ]
    return prompts, [draw.randint(100, 1024) for _ in range(256)]


def largest_batch(wanted: int, fits: int | None) -> int:
    """`wanted` rows, or the largest whole number of eights below that fits."""
    if fits is None or fits >= wanted:
        return wanted
    return max(1, fits // 8 * 8 or fits)


def workloads(floors: Floors) -> dict[str, tuple[float, str]]:
    """The floor of every workload of the main table, and its unit."""
    prompts, outputs = nano_256()
    seconds = floors.batch_run([len(p) for p in prompts], outputs)
    found = {"nano-256": (sum(outputs) / seconds, "tokens/s")}
    for rows, prompt, new in DECODES:
        found[f"decode-b{rows}"] = (floors.decode_loop(rows, prompt, new) * 1e3, "ms")
    found["prefill"] = (floors.prefill_rate(1024), "tokens/s")
    found["ttft-cold"] = (floors.first_token(3000) * 1e3, "ms")
    found["ttft-cold-rested"] = found["ttft-cold"]
    found["ttft-hit"] = (floors.first_token(3000, 2999) * 1e3, "ms")
    found["ttft-hits"] = found["ttft-hit"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Floors of each workload, by model shape.")
    parser.add_argument("--shape", nargs="+", default=[*SHAPES, *OTHER_SHAPES])
    options = parser.parse_args()
    models = {name: Floors.of(ModelConfig.named_shape(name)) for name in options.shape}
    table = {name: workloads(floors) for name, floors in models.items()}
    rows: list[list[object]] = [
        ["weights", "GB", *(f.weight_bytes / 1e9 for f in models.values())],
        ["kv of a token", "bytes", *(f.kv_bytes for f in models.values())],
    ]
    for name, (_, unit) in next(iter(table.values())).items():
        rows.append([name, unit, *(found[name][0] for found in table.values())])
    print_table("floors on one H200, bf16", ["workload", "unit", *models], rows)


if __name__ == "__main__":
    main()
