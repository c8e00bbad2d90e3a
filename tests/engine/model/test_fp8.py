"""FP8 checkpoints: what is held, what is computed, what is made while loading, what is refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import fp8_checkpoints as definition
from support import hf_models
from support.single_prompt import all_logits
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FineGrainedFP8Config,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError
from quire.engine.model.base import CausalModel
from quire.engine.model.config import LLAMA, PHI3, QWEN3_MOE, Experts, Fp8, ModelConfig
from quire.engine.model.load_config import model_config
from quire.engine.model.registry import build_model, check_operations
from quire.engine.weights.loader import check_checkpoint, load_checkpoint
from quire.engine.weights.random import fill_random, save_random
from quire.kernels import reference, support

CPU, META = torch.device("cpu"), torch.device("meta")
DENSE = hf_models.Shape("dense", 4, 2, 64, False, torch.bfloat16, 256, layers=2)
MOE = dataclasses.replace(
    DENSE,
    family=Qwen3MoeConfig,
    more={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
)
SKIPPED = ("model.layers.1.self_attn.o_proj", "model.layers.0.mlp.down_proj")
Q = "model.layers.1.self_attn.q_proj.weight"
_QUANTIZER = "transformers.quantizers.quantizer_finegrained_fp8"
PROMPT = [(37 * place * place + 11) % hf_models.VOCAB for place in range(40)]


def build(directory: Path, device: torch.device = CPU, **changes: Any) -> CausalModel:
    config = dataclasses.replace(ModelConfig.from_directory(directory), **changes)
    return build_model(config, reference, dtype=torch.float32, device=device)


def load(directory: Path, **changes: Any) -> CausalModel:
    model = build(directory, **changes)
    load_checkpoint(model, directory)
    return model


def held(model: CausalModel) -> dict[str, Tensor]:
    return {placement.name: placement.target for placement in model.placements()}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wide")
    hf_models.save(DENSE, directory)
    return directory


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("narrow")
    hf_models.save(DENSE, directory)
    definition.quantize_checkpoint(directory, skipped=SKIPPED)
    return directory


def their_model(directory: Path) -> PreTrainedModel:
    """transformers' model of an FP8 checkpoint, its weights widened by transformers."""
    wide = FineGrainedFP8Config(dequantize=True)
    with pytest.MonkeyPatch.context() as patch:  # which is for placing parts on GPUs
        patch.setattr(f"{_QUANTIZER}.is_accelerate_available", lambda: True)
        return (
            AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, quantization_config=wide
            )
            .float()
            .eval()
        )


@torch.inference_mode()
def test_logits_are_transformers_with_activations_as_defined(narrow: Path) -> None:
    """transformers has no FP8 product on a CPU: it gets weights that it has widened itself, and
    activations rounded by the definition before each product that is FP8."""
    theirs = their_model(narrow)
    exact = theirs(torch.tensor([PROMPT])).logits[0]
    for name, module in theirs.named_modules():
        if name.rpartition(".")[2] in definition.PROJECTIONS and name not in SKIPPED:
            module.register_forward_pre_hook(lambda _, given: (definition.as_taken(given[0]),))
    expected = theirs(torch.tensor([PROMPT])).logits[0]
    ours = all_logits(load(narrow), PROMPT)
    error = (ours - expected).square().mean().sqrt()
    rounding = (exact - expected).square().mean().sqrt()  # what the format itself costs
    assert error <= 0.05 * rounding
    assert (ours - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "experts"])
@torch.inference_mode()
def test_weights_stand_for_what_transformers_reads(shape: hf_models.Shape, tmp_path: Path) -> None:
    hf_models.save(shape, tmp_path)
    definition.quantize_checkpoint(tmp_path)
    theirs, ours = their_model(tmp_path).state_dict(), held(load(tmp_path))
    compared = 0
    for name, weight in ours.items():
        if f"{name}_scale_inv" not in ours:
            continue
        wide = definition.widened(weight, ours[f"{name}_scale_inv"])
        if ".experts." in name:  # transformers 5 keeps them as one
            module, _, rest = name.partition(".experts.")
            index, kind = int(rest.split(".")[0]), rest.split(".")[1]
            merged = "down_proj" if kind == "down_proj" else "gate_up_proj"
            expected = theirs[f"{module}.experts.{merged}"][index]
            if merged == "gate_up_proj":
                expected = expected.chunk(2)[kind == "up_proj"]
        else:
            expected = theirs[name]
        torch.testing.assert_close(wide, expected.float(), rtol=1e-6, atol=0)
        compared += 1
    assert compared == (14 if shape is DENSE else 32)


def test_a_skip_list_is_honoured(narrow: Path) -> None:
    parameters = held(load(narrow))
    for name, tensor in parameters.items():
        module = name.rpartition(".")[0]
        linear = module.rpartition(".")[2] in definition.PROJECTIONS
        quantized = linear and module not in SKIPPED
        if not name.endswith("_scale_inv"):
            assert (tensor.dtype == torch.float8_e4m3fn) == quantized, name
            assert (f"{name}_scale_inv" in parameters) == quantized, name


def test_made_while_loading_it_is_what_a_checkpoint_would_hold(wide: Path) -> None:
    stored = load_file(wide / "model.safetensors")
    model = load(wide, fp8=Fp8(made_on_load=True))
    seen = 0
    for placement in model.placements():
        scale = getattr(placement, "scale", None)
        if scale is None:
            assert torch.equal(placement.target, stored[placement.name].float())
            continue
        data, scales = definition.quantized(stored[placement.name])
        assert torch.equal(placement.target.float(), data.float()), placement.name
        assert torch.equal(scale, scales), placement.name
        seen += 1
    assert seen == 14


def test_noise_is_the_same_in_a_checkpoint_and_made_in_place(tmp_path: Path) -> None:
    shape = dataclasses.replace(
        ModelConfig.named_shape("bench"),
        num_layers=1,
        vocab_size=64,
        stored_dtype="float32",
        fp8=Fp8(made_on_load=True),
    )
    made = build_model(shape, reference, dtype=torch.float32, device=CPU)
    fill_random(made, 4)
    save_random(shape, tmp_path, 4)
    loaded = held(load(tmp_path))
    for placement in made.placements():
        assert torch.equal(placement.target.float(), loaded[placement.name].float())
        if hasattr(placement, "scale"):
            assert torch.equal(placement.scale, loaded[f"{placement.name}_scale_inv"])
    assert made.config.weight_bytes(torch.float32) == sum(x.nbytes for x in loaded.values())


# ---------------------------------------------------------------- bad input


def set_scale(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}_scale_inv"][1, 0] = value

    return change


BAD: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (lambda t: t.pop(f"{Q}_scale_inv"), f"{Q}_scale_inv is missing"),
    (lambda t: t.update({f"{Q}_scale_inv": torch.ones(2, 1)}), r"has the shape \[2, 1\].*\[2, 2\]"),
    (set_scale(0.0), rf"{Q}_scale_inv\[1, 0\] = 0: a scale must be"),
    (set_scale(float("nan")), rf"{Q}_scale_inv\[1, 0\] = nan"),
    (set_scale(float("inf")), rf"{Q}_scale_inv\[1, 0\] = inf"),
    (set_scale(3e38), rf"{Q}_scale_inv\[1, 0\] = 3e\+38: .* 448 times it finite"),
    (set_scale(-1.0), rf"{Q}_scale_inv\[1, 0\] = -1"),
    (lambda t: t.update({Q: t[Q].float()}), f"{Q} is float32, .* ask for an FP8 weight"),
    (
        lambda t: t.update(
            {f"{SKIPPED[0]}.weight": t[f"{SKIPPED[0]}.weight"].to(torch.float8_e4m3fn)}
        ),
        f"{SKIPPED[0]}.weight is float8_e4m3fn, .* ask for none in FP8",
    ),
    (
        lambda t: t.update({f"{SKIPPED[0]}.weight_scale_inv": torch.ones(2, 2)}),
        f"{SKIPPED[0]}.weight_scale_inv is not a weight of the model",
    ),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words[-40:] for _, words in BAD])
def test_bad_tensors_are_told_by_name_before_memory_is_taken(
    narrow: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    tensors = load_file(narrow / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((narrow / "config.json").read_text())
    outline = build(tmp_path, META)
    with pytest.raises(ModelError, match=words):
        check_checkpoint(outline, tmp_path)


def test_a_weight_that_is_not_a_number_is_refused(narrow: Path, tmp_path: Path) -> None:
    tensors = load_file(narrow / "model.safetensors")
    tensors[Q].view(torch.uint8)[3, 5] = 0x7F  # NaN
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((narrow / "config.json").read_text())
    with pytest.raises(ModelError, match=f"{Q}: 1 numbers in rows 0 to 255 are not finite"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("skipped", "words"),
    [
        (("model.layers.7.mlp.down_proj",), r"model\.layers\.7\.mlp\.down_proj: the model has no"),
        (("mlp.gate", "nowhere"), r"mlp\.gate \(and 1 more\): the model has no such module"),
        (("model.layers.0.self_attn.q_proj",), r"q_proj and not .*k_proj: they are one product"),
    ],
)
def test_a_skip_list_that_cannot_be_honoured_is_refused(
    skipped: tuple[str, ...], words: str, narrow: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        build(narrow, META, fp8=Fp8(skipped))


@pytest.mark.parametrize(
    "skipped",
    [
        ("lm_head", "model.embed_tokens", "model.norm", "model.layers.0.input_layernorm"),
        ("model.layers.0.self_attn", "model.layers.0.mlp"),
        ("gate_proj", "up_proj"),
    ],
)
def test_names_stand_for_what_is_inside_and_for_ends(
    skipped: tuple[str, ...], narrow: Path
) -> None:
    model = build(narrow, META, fp8=Fp8(skipped))
    fp8 = [p.name for p in model.placements() if p.target.dtype == torch.float8_e4m3fn]
    assert len(fp8) == {"lm_head": 14, "gate_proj": 10}.get(skipped[0], 7)


def test_rows_and_shares_that_cut_a_block_are_refused() -> None:
    tiny = dataclasses.replace(ModelConfig.named_shape("tiny"), fp8=Fp8(made_on_load=True))
    with pytest.raises(ConfigError, match=r"v_proj: begins at row 192 .* multiples of 128 rows"):
        build_model(tiny, reference, dtype=torch.float32, device=META)


@pytest.mark.parametrize("architecture", [LLAMA, PHI3])
def test_gates_that_end_within_a_block_are_refused(architecture: str) -> None:
    """Stored apart or, as Phi's, in one matrix with the ups, whose scales begin behind theirs."""
    config = dataclasses.replace(
        ModelConfig.named_shape("bench"), architecture=architecture, intermediate_size=192,
        hidden_size=256, fp8=Fp8(made_on_load=True), tie_word_embeddings=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"up_proj: begins at row 192 .* multiples of 128 rows"):
        build_model(config, reference, dtype=torch.float32, device=META)


def test_the_option_makes_fp8_of_what_is_not(wide: Path, narrow: Path) -> None:
    def asked(model: object, quantization: str) -> Fp8 | None:
        return model_config(EngineConfig(model=str(model), quantization=quantization)).fp8

    made = Fp8(made_on_load=True)
    assert asked(wide, "fp8") == asked("random:8B", "fp8") == asked("random:8B-fp8", "auto") == made
    assert asked(wide, "auto") is None
    assert asked(narrow, "auto") == asked(narrow, "fp8") == Fp8(("lm_head", *SKIPPED))
    served = "lm_head", "model.layers.0.self_attn"
    model = load(wide, fp8=Fp8(served, made_on_load=True))
    assert model.fingerprint != load(wide, fp8=made).fingerprint != load(wide).fingerprint


def test_a_device_without_kernels_for_fp8_is_refused_by_name() -> None:
    without: Any = SimpleNamespace(route=None, mix_experts=None)
    with pytest.raises(ConfigError, match="device has no kernels for FP8 weights; they run with"):
        check_operations(ModelConfig.named_shape("8B-fp8"), without)
    without.linear_fp8 = None
    check_operations(ModelConfig.named_shape("8B-fp8"), without)
    with pytest.raises(
        ConfigError, match="Qwen3MoeForCausalLM: this device has no kernels for experts with FP8"
    ):
        check_operations(ModelConfig.named_shape("30B-A3B-fp8"), without)


def test_a_gpu_that_has_no_e4m3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 7)  # which nothing has asked about
    for capability in ((8, 6), (8, 9)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, told=capability: told)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A10")
        support.knows_e4m3.cache_clear()
        if capability == (8, 9):
            support.check_fp8(device)
            continue
        with pytest.raises(ValueError, match=r"A10 has compute capability 8\.6: FP8 .* need 8\.9"):
            support.check_fp8(device)
    support.knows_e4m3.cache_clear()


def test_experts_in_fp8_count_and_fit(tmp_path: Path) -> None:
    """A made checkpoint of experts is loaded, and says something."""
    shape = dataclasses.replace(
        ModelConfig.named_shape("bench"),
        architecture=QWEN3_MOE,
        num_layers=1,
        vocab_size=64,
        experts=Experts(3, 2, 128, True),
        fp8=Fp8(made_on_load=True),
    )
    save_random(shape, tmp_path, 4)
    model = load(tmp_path)
    assert all_logits(model, [1, 2, 3]).isfinite().all()
    assert model.config.num_parameters == shape.num_parameters
    assert ModelConfig.named_shape("30B-A3B-fp8").num_parameters == 30_532_122_624
