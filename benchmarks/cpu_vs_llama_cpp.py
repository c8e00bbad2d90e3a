"""Quire against llama.cpp on the CPU: the same random weights, one process, pairs in turn.

Needs llama-cpp-python and gguf (pip builds llama.cpp for the machine it is on). The checkpoint is
made here, and turned into GGUF files of bf16 and Q8_0, which stand beside Quire's bf16 and int8.
Both take as many threads as torch, or --threads. Only ratios mean much where a machine is shared;
its load is written beside them. --cpu-time (one thread) counts the process's CPU time: what others
take of the cores is left out, what they take of memory is not.

    one       one stream, 128 ids in: tokens/s of the answer
    eight     eight streams at once, 32 ids in each: tokens/s of all answers together
    prompt    512 ids in, cold: tokens/s of the prompt

    python benchmarks/cpu_vs_llama_cpp.py --shape 0.6B --pairs 5 --out cpu-vs-llama-cpp-0.6B.json
"""

import argparse
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from common import Row, print_table, result_row, write_results
from engines import QuireEngine

from quire.engine.model.config import ModelConfig
from quire.engine.model.hf_config import read_directory
from quire.service.models import pocket

MAX_LEN, BATCH = 640, 512
CLOCK = time.perf_counter
FORMATS = {"bf16": "auto", "int8": "int8"}  # beside llama.cpp's BF16 and Q8_0
GOALS = {"bf16 one": 0.9}  # all others 1.0
COLUMNS = ["", "Quire", "llama.cpp", "ratio", "min", "max", "goal", "same"]


@dataclass(frozen=True)
class Work:
    """Streams at once, ids in, tokens out. What counts is the answer, or the prompt alone."""

    name: str
    streams: int
    ids: int
    tokens: int
    of_prompt: bool = False

    def prompts(self, vocab: int, turn: int) -> list[list[int]]:
        """Other ids at each turn, so that no cache knows them."""
        draw = random.Random(f"{self.name} {turn}")
        return [[draw.randrange(vocab) for _ in range(self.ids)] for _ in range(self.streams)]

    def rate(self, begin: float, first: float, end: float) -> float:
        """Tokens/s, from when it began, all first tokens were there, and all was."""
        if self.of_prompt:
            return self.streams * self.ids / (first - begin)
        return self.streams * (self.tokens - 1) / (end - first)


class Quire:
    """Quire's own loop."""

    def __init__(self, directory: Path, quantization: str) -> None:
        self._engine = QuireEngine(
            str(directory),
            device="cpu",
            dtype="bfloat16",
            quantization=quantization,
            max_num_seqs=8,
            max_num_batched_tokens=BATCH,
            max_model_len=MAX_LEN,
            cpu_kv_gib=0.6,
        )

    def run(self, work: Work, prompts: Sequence[Sequence[int]]) -> tuple[float, list[list[int]]]:
        """The rate, and the tokens of each stream."""
        from quire.engine.request import GenerationRequest, SamplingParams

        core, made = self._engine.engine.core, [list[int]() for _ in prompts]
        self._engine.forget()
        params = SamplingParams(temperature=0.0, max_tokens=work.tokens, ignore_eos=True)
        begin, first = CLOCK(), 0.0
        for key, prompt in enumerate(prompts):
            core.scheduler.submit(GenerationRequest(key, tuple(prompt), params))
        while core.scheduler.has_requests:
            for output in core.step():
                made[output.key].extend(output.token_ids)
            if not first and all(made):
                first = CLOCK()
        return work.rate(begin, first, CLOCK()), made


class LlamaCpp:
    """llama.cpp's own decoding, several sequences in a batch."""

    def __init__(self, file: Path, threads: int) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(quiet, None)
        self._quiet = quiet
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = (
            8 * MAX_LEN,
            BATCH,
            BATCH,
            8,
        )
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def run(self, work: Work, prompts: Sequence[Sequence[int]]) -> tuple[float, list[list[int]]]:
        """The rate, and the tokens of each stream."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        begin = CLOCK()
        tokens = self._decode([(i, list(prompt), 0) for i, prompt in enumerate(prompts)])
        first, made = CLOCK(), [[token] for token in tokens]
        for position in range(work.ids, work.ids + work.tokens - 1):
            tokens = self._decode([(i, [token], position) for i, token in enumerate(tokens)])
            for stream, token in zip(made, tokens, strict=True):
                stream.append(token)
        return work.rate(begin, first, CLOCK()), made

    def _decode(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> list[int]:
        """The likeliest next token after each sequence's new ids (sequence, ids, position)."""
        batch, n = self._batch, 0
        for sequence, ids, position in rows:
            for offset, token in enumerate(ids):
                batch.token[n], batch.pos[n] = token, position + offset
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = offset == len(ids) - 1
                n += 1
        batch.n_tokens = n
        if status := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode: {status}")
        logits = self._lib.llama_get_logits(self._context)
        count = len(rows) * self._vocab
        return [
            int(i)
            for i in np.ctypeslib.as_array(logits, (count,)).reshape(-1, self._vocab).argmax(1)
        ]


# ---------------------------------------------------------------- the same weights as GGUF


_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """A weight's name in a GGUF file."""
    if name in _NAMES:
        return _NAMES[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def weights(directory: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The checkpoint's, fp32, one after the other."""
    from safetensors import safe_open

    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name).float().numpy()


def write_gguf(directory: Path, config: ModelConfig, target: Path, *, quantized: bool) -> None:
    """The checkpoint as a GGUF file without a vocabulary's texts: matrices bf16 or Q8_0."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    kind = kinds.Q8_0 if quantized else kinds.BF16
    writer = gguf.GGUFWriter(target, "qwen3", use_temp_file=True)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_q_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(
        gguf.LlamaFileType.MOSTLY_Q8_0 if quantized else gguf.LlamaFileType.MOSTLY_BF16
    )
    for name, numbers in weights(directory):
        stored = kind if numbers.ndim > 1 else kinds.F32
        data = gguf.quants.quantize(numbers, stored)
        writer.add_tensor(gguf_name(name), data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---------------------------------------------------------------- pairs


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Share of streams whose first token is the same: both compute one function."""
    return statistics.mean(a[0] == b[0] for a, b in zip(ours, theirs, strict=True))


def compare(
    quire: Quire, llama: LlamaCpp, works: Sequence[Work], vocab: int, pairs: int
) -> Iterator[tuple[Work, list[float], list[float], float]]:
    """Each work's rates of both in turn, and how often their first tokens agree."""
    for work in works:
        mine, theirs, same = [], [], []
        for turn in range(pairs + 1):
            prompts = work.prompts(vocab, turn)
            our_rate, our_tokens = quire.run(work, prompts)
            their_rate, their_tokens = llama.run(work, prompts)
            same.append(agreement(our_tokens, their_tokens))
            if turn:  # the first warms both up
                mine.append(our_rate)
                theirs.append(their_rate)
        yield work, mine, theirs, statistics.mean(same)


def checkpoint(shape: str, scratch: Path) -> tuple[Path, ModelConfig]:
    """Where the weights are: Pocket's own, or random ones of a shape, made where they are not."""
    if shape == "pocket":
        return pocket.directory(), read_directory(pocket.directory())
    from quire.engine.weights.random import save_random

    directory = scratch / shape
    if not directory.exists():
        save_random(shape, directory, seed=0)
    return directory, ModelConfig.named_shape(shape)


def measured(
    name: str, directory: Path, config: ModelConfig, scratch: Path, options: argparse.Namespace
) -> Iterator[tuple[list[Row], list[object]]]:
    """Of each work in a format: its rows, and its line of the table."""
    works = [
        Work("one", 1, 128, options.tokens),
        Work("eight", 8, 32, options.tokens),
        Work("prompt", 1, BATCH, 1, of_prompt=True),
    ]
    file = scratch / f"{options.shape}-{name}.gguf"
    if not file.exists():
        write_gguf(directory, config, file, quantized=name == "int8")
    quire, llama = Quire(directory, FORMATS[name]), LlamaCpp(file, torch.get_num_threads())
    for work, mine, theirs, same in compare(quire, llama, works, config.vocab_size, options.pairs):
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        label = f"{name} {work.name}"
        more = {
            "load": os.getloadavg(),
            "threads": torch.get_num_threads(),
            "clock": CLOCK.__name__,
            "first_tokens_agree": same,
        }
        made = [
            result_row(f"cpu: {label}", options.shape, engine, runs, unit, **more)
            for engine, runs, unit in (
                *(("quire", mine, "tokens/s"), ("llama.cpp", theirs, "tokens/s")),
                ("quire / llama.cpp", ratios, "x"),
            )
        ]
        figures = [statistics.median(runs) for runs in (mine, theirs, ratios)]
        yield made, [label, *figures, min(ratios), max(ratios), GOALS.get(label, 1.0), same]
    llama.close()
    del quire, llama
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="0.6B", help="of random weights, or pocket")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--scratch", type=Path, default=None, help="keep the files made here")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="not the clock's; one thread")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.cpu_time else options.threads)
    if options.cpu_time:
        global CLOCK
        CLOCK = time.process_time
    rows, table = [], []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        directory, config = checkpoint(options.shape, scratch)
        for name in options.formats:
            for made, shown in measured(name, directory, config, scratch, options):
                rows += made
                table.append(shown)
                print_table("", COLUMNS, [shown])
    print_table(f"tokens/s on the CPU, {options.shape}", COLUMNS, table)
    print(f"load {os.getloadavg()}, {torch.get_num_threads()} threads")
    if options.out:
        write_results(options.out, rows)


if __name__ == "__main__":
    main()
