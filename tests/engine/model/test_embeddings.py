"""Embeddings and scores, held to transformers on small random checkpoints, and to themselves.

What an embedding is, sentence-transformers' modules say: the last token's state behind the final
norm (Pooling with lasttoken), over its length (Normalize). A score is the model card's: of the
last token's logits the softmax over "no" and "yes".
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hf_models import SHAPES, load, save
from support.small_engine import Setup, WatchedOps, build_core, load_model, model_config
from torch import Tensor
from transformers import Qwen3Model

from quire.engine.errors import ConfigError, ModelError, RequestError
from quire.engine.loop.core import EngineCore
from quire.engine.model.config import ModelConfig
from quire.engine.model.registry import Model, build_model
from quire.engine.request import (
    FinishReason,
    GenerationRequest,
    Output,
    Pooling,
    SamplingParams,
)
from quire.engine.weights.loader import load_checkpoint

YES, NO = 7, 300
LENGTHS = (1, 3, 8, 17, 40, 61)


def request(key: int, prompt: Sequence[int], ids: tuple[int, ...] = (), **more: Any) -> Any:
    return GenerationRequest(key, tuple(prompt), SamplingParams(), pooling=Pooling(ids), **more)


def prompts(vocab: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Some begin alike."""
    chosen = np.random.default_rng(5).integers(0, vocab, size=(2, max(lengths))).tolist()
    return [chosen[i % 2][:length] for i, length in enumerate(lengths)]


def serve(core: EngineCore, specs: Sequence[GenerationRequest]) -> dict[int, Output]:
    """The last output of each, and the most cached tokens and preemptions that were told."""
    ends: dict[int, Output] = {}
    for spec in specs:
        core.scheduler.submit(spec)
    for _ in range(5000):
        if not core.scheduler.has_requests:
            break
        for output in core.step():
            before = ends.get(output.key)
            if before is None:
                ends[output.key] = output
            else:
                before.join(output)
    pool = core.scheduler.pool
    assert not core.scheduler.has_requests and pool.num_free == pool.num_usable
    return ends


def numbers(output: Output) -> Any:
    assert output.finish is FinishReason.STOP and output.pooled is not None
    assert not output.token_ids
    return np.frombuffer(output.pooled, "<f4")


# ---------------------------------------------------------------- transformers


def _load(directory: Path) -> tuple[Model, WatchedOps]:
    ops = WatchedOps()
    config = ModelConfig.from_directory(directory)
    cpu = torch.device("cpu")
    model = build_model(config, ops, dtype=torch.float32, device=cpu)  # type: ignore[arg-type]
    load_checkpoint(model, directory)
    return model, ops


@torch.inference_mode()
def _theirs(decoder: Any, prompt: Sequence[int]) -> Tensor:
    """Last-token pooling, normalised."""
    last = decoder(torch.tensor([prompt])).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(last, dim=0)


def _cosine(ours: Any, theirs: Tensor) -> float:
    mine = torch.tensor(ours).double()
    return float(mine @ theirs.double() / mine.norm() / theirs.double().norm())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_as_transformers(shape: Any, tmp_path: Path) -> None:
    """Six shapes, batched with one another, in chunks; states, and the probability of "yes"."""
    save(shape, tmp_path)
    theirs = load(tmp_path, torch.float32)
    model, ops = _load(tmp_path)
    setup = Setup(max_num_seqs=8, max_num_batched_tokens=24, caching=True, overlap=True)
    core = build_core(model, ops, setup)
    texts = prompts(model.config.vocab_size)
    specs = [request(i, text) for i, text in enumerate(texts)]
    specs += [request(100 + i, text, (NO, YES)) for i, text in enumerate(texts)]
    ends = serve(core, specs)
    for i, text in enumerate(texts):
        assert _cosine(numbers(ends[i]), _theirs(theirs.model, text)) > 1 - 1e-5
        with torch.inference_mode():
            pair = theirs(torch.tensor([text])).logits[0, -1, [NO, YES]]
        mine = torch.tensor(numbers(ends[100 + i])).softmax(0)
        torch.testing.assert_close(mine, pair.softmax(0), atol=1e-5, rtol=0)


def _bare(source: Path, target: Path, prefix: str, architecture: str) -> None:
    """The decoder alone of an untied checkpoint: no head, and names that begin with `prefix`."""
    tensors = load_file(source / "model.safetensors")
    kept = {
        prefix + name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name != "lm_head.weight"
    }
    target.mkdir()
    save_file(kept, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    save(SHAPES[3], directory)
    return directory


CASES = [("", "Qwen3ForCausalLM"), ("", "Qwen3Model"), ("model.", "Qwen3Model")]


@pytest.mark.parametrize(("prefix", "architecture"), CASES)
def test_a_checkpoint_without_a_head(
    whole: Path, tmp_path: Path, prefix: str, architecture: str
) -> None:
    """As Qwen3-Embedding is published, and as a decoder alone is saved."""
    bare = tmp_path / "bare"
    _bare(whole, bare, prefix, architecture)
    model, ops = _load(bare)
    assert model.config.embeds_only
    decoder = Qwen3Model.from_pretrained(bare, dtype=torch.float32).eval()
    text = prompts(model.config.vocab_size)[3]
    ends = serve(build_core(model, ops, Setup()), [request(1, text)])
    assert _cosine(numbers(ends[1]), _theirs(decoder, text)) > 1 - 1e-5


def test_a_head_that_is_missing_is_told(whole: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    _bare(whole, bare, "model.", "Qwen3ForCausalLM")
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        _load(bare)
    (bare / "modules.json").write_text("[]")
    assert ModelConfig.from_directory(bare).embeds_only


def _modules(*types: str) -> str:
    return json.dumps([{"idx": i, "path": f"{i}", "type": t} for i, t in enumerate(types)])


def test_other_modules_and_poolings_are_refused(whole: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    _bare(whole, bare, "", "Qwen3Model")
    (bare / "modules.json").write_text(_modules("st.models.Transformer", "st.models.Dense"))
    with pytest.raises(ConfigError, match=r"\[1\]\.type = st\.models\.Dense: not supported"):
        ModelConfig.from_directory(bare)
    (bare / "modules.json").write_text(_modules("st.models.Transformer", "st.models.Pooling"))
    pooling = bare / "1" / "config.json"
    pooling.parent.mkdir()
    pooling.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_lasttoken": false}')
    with pytest.raises(ConfigError, match="pooling_mode_mean_tokens"):
        ModelConfig.from_directory(bare)
    pooling.write_text('{"pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true}')
    assert ModelConfig.from_directory(bare).embeds_only


# ---------------------------------------------------------------- to itself


@pytest.fixture(scope="module")
def small() -> tuple[Model, WatchedOps, list[list[int]], dict[int, Any]]:
    """A model, texts, and what each gives alone, whole and uncached: its state, and two logits."""
    model, ops = load_model(model_config(tied=False), seed=3)
    texts = prompts(model.config.vocab_size)
    core = build_core(model, ops, Setup())
    alone = {}
    for i, text in enumerate(texts):
        specs = [request(i, text), request(100 + i, text, (NO, YES))]
        alone.update({k: numbers(end) for k, end in serve(core, specs).items()})
    return model, ops, texts, alone


SETUPS = {
    "batched": Setup(max_num_seqs=16),
    "overlapped": Setup(max_num_seqs=16, overlap=True),
    "chunked": Setup(max_num_seqs=16, max_num_batched_tokens=7, overlap=True),
    "cached": Setup(max_num_seqs=2, caching=True, overlap=True),
    "two phases": Setup(max_num_seqs=16, max_num_batched_tokens=9, two_phase=True, caching=True),
    "padded": Setup(max_num_seqs=16, padded=True, caching=True, overlap=True),
}


def _mixed(texts: list[list[int]]) -> Iterator[GenerationRequest]:
    """States, logits and tokens side by side."""
    for i, text in enumerate(texts):
        yield GenerationRequest(200 + i, tuple(text), SamplingParams(max_tokens=5))
        yield request(i, text)
        yield request(100 + i, text, (NO, YES))


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_equal_to_itself_alone(setup: Setup, small: Any) -> None:
    """Beside texts that are generated, whatever the steps."""
    model, ops, texts, alone = small
    core = build_core(model, ops, setup)
    ends = serve(core, list(_mixed(texts)))
    for key, expected in alone.items():
        assert _cosine(numbers(ends[key]), torch.tensor(expected)) > 1 - 1e-6
        np.testing.assert_allclose(numbers(ends[key]), expected, rtol=0, atol=2e-5)
    assert all(len(ends[200 + i].token_ids) == 5 for i in range(len(texts)))
    if setup.caching:
        again = serve(core, [request(1, texts[-1]), request(2, texts[-1], (NO, YES))])
        assert again[1].cached_tokens == again[2].cached_tokens == len(texts[-1]) - 1
        np.testing.assert_allclose(numbers(again[1]), alone[len(texts) - 1], rtol=0, atol=2e-5)


def test_equal_to_itself_preempted(small: Any) -> None:
    """One that ranks higher grows into the blocks of one that is amid its chunks."""
    model, ops, texts, alone = small
    core = build_core(model, ops, Setup(max_num_seqs=2, max_num_batched_tokens=4, num_blocks=19))
    longest = len(texts) - 1
    high = GenerationRequest(900, tuple(texts[1]), SamplingParams(max_tokens=40), priority=1)
    last = serve(core, [high, request(longest, texts[longest])])[longest]
    assert last.preemptions >= 1
    np.testing.assert_allclose(numbers(last), alone[longest], rtol=0, atol=2e-5)


def test_longest_prompt_and_what_is_refused(small: Any) -> None:
    model, ops, _texts, _alone = small
    core = build_core(model, ops, Setup(max_model_len=64, num_blocks=17))
    fits = list(range(64))
    assert numbers(serve(core, [request(1, fits)])[1]).shape == (model.config.hidden_size,)
    with pytest.raises(RequestError, match="65 tokens exceed max_model_len = 64"):
        core.scheduler.submit(request(2, [*fits, 1]))
    with pytest.raises(RequestError, match="pooling"):
        core.scheduler.submit(request(2, fits, n=2))


def test_aborted_amid_its_chunks(small: Any) -> None:
    model, ops, texts, _alone = small
    core = build_core(model, ops, Setup(max_num_batched_tokens=8, overlap=True))
    core.scheduler.submit(request(1, texts[-1]))
    core.step()
    core.abort(1)
    ends = serve(core, [])
    assert ends[1].finish is FinishReason.CANCELLED and ends[1].pooled is None


def test_numbers_that_are_none_end_their_request_alone(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ops, texts, alone = small
    states: Callable[[Tensor], Tensor] = model.states

    def broken(hidden: Tensor) -> Tensor:
        made = states(hidden)
        made[-1] = torch.nan
        return made

    core = build_core(model, ops, Setup(max_num_seqs=4, caching=True))
    monkeypatch.setattr(model, "states", broken)
    ends = serve(core, [request(2, texts[2]), request(3, texts[3])])
    assert ends[3].finish is FinishReason.ERROR and ends[3].error_id
    np.testing.assert_allclose(numbers(ends[2]), alone[2], rtol=0, atol=2e-5)
    assert core.scheduler.counters.not_a_number == 1
    monkeypatch.setattr(model, "states", states)
    again = serve(core, [request(3, texts[3])])
    assert again[3].cached_tokens == 0, "nothing of it was known to others"
