"""`quantization = int8`: what it takes, what it refuses, and how far it is from float32."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError
from quire.engine.model.config import ModelConfig
from quire.engine.model.registry import build_model
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.startup import sizing
from quire.engine.startup.build_engine import Engine, build_engine
from quire.engine.weights.checkpoint import SINGLE
from quire.engine.weights.loader import load_checkpoint
from quire.engine.weights.random import fill_random, save_random
from quire.kernels import reference
from quire.kernels.row_scaled import RowScaled

CPU = torch.device("cpu")
TINY = ModelConfig.named_shape("tiny")


def engine(**options: object) -> Engine:
    defaults: dict[str, object] = {
        "model": "random:tiny",
        "device": "cpu",
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
        "num_blocks": 40,
        "block_size": 16,
    }
    config = EngineConfig(**(defaults | options))  # type: ignore[arg-type]
    return build_engine(config, lambda _stage, _share: None)


def answers(of: Engine, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy tokens of all prompts at once, cold."""
    scheduler, made = of.core.scheduler, [list[int]() for _ in prompts]
    scheduler.pool.forget_all()
    for key, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        scheduler.submit(GenerationRequest(key, tuple(prompt), params))
    while scheduler.has_requests:
        for output in of.core.step():
            made[output.key].extend(output.token_ids)
    return made


@pytest.fixture(scope="module")
def int8() -> Engine:
    return engine(quantization="int8")


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(7)
    return [torch.randint(0, 4096, (n,), generator=draw).tolist() for n in (1, 5, 23, 70)]


def test_tokens_are_the_twins(int8: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of compiled products and of PyTorch's over the same int8 rows."""
    monkeypatch.setattr("quire.kernels.cpu.ops.own_ops", lambda: None)
    assert answers(int8, prompts()) == answers(engine(quantization="int8"), prompts())


def test_tokens_are_the_same_alone_and_together(int8: Engine) -> None:
    assert answers(int8, prompts()) == [answers(int8, [one])[0] for one in prompts()]


def test_it_serves_another_function_and_says_so(int8: Engine) -> None:
    plain = engine()
    assert int8.info.fingerprint != plain.info.fingerprint
    assert int8.info.fingerprint == engine(quantization="int8").info.fingerprint
    assert int8.info.options["quantization"] == "int8"
    assert answers(int8, prompts()) != answers(plain, prompts())


def test_a_plan_counts_the_bytes_that_are_taken(int8: Engine) -> None:
    config = EngineConfig(model="random:tiny", device="cpu", quantization="int8")
    taken = sum(p.target.nbytes for p in int8.runner._model.placements())
    assert sizing.plan(config, TINY).weight_bytes == int8.info.weight_bytes == taken
    assert taken < 0.27 * TINY.weight_bytes(torch.float32)


def test_every_matrix_is_int8_and_no_vector(int8: Engine) -> None:
    for placement in int8.runner._model.placements():
        assert isinstance(placement.target, RowScaled) == (not placement.is_vector)


def test_logits_are_near_those_of_float32() -> None:
    """The distance stated in docs/performance-log.md: 4% of the logits' norm on this shape, of
    which bf16 alone has 2."""
    hidden = torch.randn(32, TINY.hidden_size, generator=torch.Generator().manual_seed(1))

    def logits(int8: bool) -> torch.Tensor:
        model = build_model(TINY, reference, dtype=torch.float32, device=CPU, int8=int8)
        fill_random(model, 0)
        return model.logits(hidden, None)

    exact = logits(False)
    off = float((logits(True) - exact).norm() / exact.norm())
    assert 0 < off < 0.02  # the head alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_is_made_int8_while_it_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    save_random(TINY, tmp_path, dtype=dtype)
    stored = load_file(tmp_path / SINGLE)
    model = build_model(TINY, reference, dtype=torch.float32, device=CPU, int8=True)
    load_checkpoint(model, tmp_path)
    for placement in model.placements():
        if isinstance(placement.target, RowScaled):
            wanted = RowScaled.empty(*placement.shape, torch.float32, CPU)
            wanted.copy_(stored[placement.name])
            assert torch.equal(placement.target.data, wanted.data)
            assert torch.equal(placement.target.scale, wanted.scale)


def test_a_row_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    save_random(TINY, tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name][3, 5] = float("nan")
    save_file(tensors, tmp_path / SINGLE)
    model = build_model(TINY, reference, dtype=torch.float32, device=CPU, int8=True)
    with pytest.raises(ModelError, match=rf"{name}: 1 rows .* not finite"):
        load_checkpoint(model, tmp_path)


@pytest.mark.parametrize(
    ("shape", "words"), [("8B-fp8", "FP8 already"), ("30B-A3B", "a mixture of experts")]
)
def test_what_has_no_int8_rows_is_refused_by_name(shape: str, words: str) -> None:
    config = EngineConfig(model=f"random:{shape}", device="cpu", quantization="int8")
    with pytest.raises(ConfigError, match=f"quantization = int8: .*{words}"):
        sizing.plan(config, ModelConfig.named_shape(shape))


def test_a_gpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="int8: only on the CPU, not with device = cuda"):
        EngineConfig(quantization="int8", device="cuda")
    with pytest.raises(ConfigError, match="quantization = 'int4': supported: auto, fp8, int8"):
        EngineConfig(quantization="int4")
    with pytest.raises(ConfigError, match="int8: only with tensor_parallel_size = 1, it is 2"):
        EngineConfig(quantization="int8", device="cpu", tensor_parallel_size=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = EngineConfig(quantization="int8")
    with pytest.raises(ConfigError, match=r"int8: only on the CPU, .* \(try device = cpu\)"):
        sizing.resolve_device(found)
    assert sizing.resolve_device(found.replace(device="cpu")) == CPU
