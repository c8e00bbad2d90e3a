"""When an engine is exact, when it is not, and what it says of it."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.config import Fp8, ModelConfig
from quire.engine.model.layers.parallel import World
from quire.engine.model.product import Product
from quire.engine.runner import exact_mode

pytest.importorskip("triton")
from quire.kernels.experts import check as experts_check
from quire.kernels.linear import check, exact, fp8_check
from quire.kernels.linear.check import Difference
from quire.kernels.linear.tuning import Library, Timings
from quire.kernels.weight import Weight

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
BF16 = torch.bfloat16
SHAPE = ModelConfig.named_shape("0.6B")
FP8 = replace(SHAPE, fp8=Fp8(made_on_load=True), num_layers=1)
EXPERTS = replace(ModelConfig.named_shape("30B-A3B"), num_layers=1)


def wanted(mode: str, shape: ModelConfig = SHAPE, dtype: torch.dtype = BF16) -> bool:
    return exact_mode.is_wanted(EngineConfig(exact=mode), shape, dtype, CUDA)


def test_on_is_refused_by_a_weights_name_and_auto_says_why_it_is_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cases: list[tuple[ModelConfig, torch.dtype, str]] = [
        (SHAPE, torch.float32, "model.layers.0.self_attn.q_proj: torch.float32 has no exact"),
        (
            replace(SHAPE, architecture="Qwen2ForCausalLM", sliding_window=64),
            BF16,
            "model.layers.0.self_attn.q_proj: attention within a window has no",
        ),
    ]
    for shape, dtype, words in cases:
        with pytest.raises(ConfigError, match=f"exact = on: {words}"):
            wanted("on", shape, dtype)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert not wanted("auto", shape, dtype)
        (line,) = caplog.messages
        assert line.startswith(f"exact = auto: off: {words}")
    with pytest.raises(ConfigError, match="exact = on: a CPU has no exact kernels"):
        exact_mode.is_wanted(EngineConfig(exact="on"), SHAPE, BF16, CPU)
    with pytest.raises(ConfigError, match="exact = 'yes': supported: auto, on, off"):
        EngineConfig(exact="yes")
    with pytest.raises(ConfigError, match="exact = on: tensor_parallel_size = 2: how ranks add"):
        config = EngineConfig(exact="on", tensor_parallel_size=2)
        exact_mode.is_wanted(config, SHAPE, BF16, CUDA)
    assert wanted("on")
    assert not wanted("off")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (FP8, "model.layers.0.self_attn.q_proj: no table tells what FP8 weights cost on a card"),
        (EXPERTS, "model.layers.0.mlp.experts: no table tells what experts cost on a card"),
    ],
)
def test_what_no_table_tells_of_is_exact_where_that_is_asked_for(
    shape: ModelConfig,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert wanted("on", shape)
    monkeypatch.setattr(exact_mode, "card_name", lambda _device: "a card")
    with caplog.at_level(logging.INFO):
        assert not wanted("auto", shape)
    assert caplog.messages == [f"exact = auto: off: {words}"]


def test_weights_of_another_kind_are_refused_by_name() -> None:
    other = Product("a.weight", Weight(torch.empty(2, 2, dtype=torch.int8), torch.empty(2)))
    reason = exact_mode._refusal(SHAPE, [other], BF16)
    assert reason == "a.weight: torch.int8 weights have no exact kernel"


def test_auto_is_on_where_the_cards_table_says_that_it_costs_little(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(exact_mode, "card_name", lambda _device: "a card")
    assert not wanted("auto")
    assert "no table tells all that it costs on a card" in caplog.text
    rows = dict.fromkeys(exact.BUCKETS, 10.0)
    sizes = {exact_mode._size(one) for one in exact_mode.products_of(SHAPE, BF16, None)}
    for us, on in ((10.25, True), (10.4, False)):
        table = dict.fromkeys(sizes, Timings(rows, rows | {4: us}))
        monkeypatch.setattr(exact.tuning, "timings", lambda _card, table=table: table)
        assert wanted("auto") is on
    assert "products would take up to 4.0% longer on a card" in caplog.text


def test_the_products_are_those_of_the_ranks_share() -> None:
    whole, part = (exact_mode.products_of(SHAPE, BF16, world) for world in (None, World(0, 2)))
    assert len(whole) == len(part) == 4 * SHAPE.num_layers + 1
    kinds = {one.kind: one for one in whole}
    assert len(kinds) == 5
    assert [tuple(one.weight.data.shape) for one in whole[:4]] == [
        (4096, 1024),
        (1024, 2048),
        (6144, 1024),
        (1024, 3072),
    ]
    assert [one.residual for one in whole[:4]] == [False, True, False, True]
    assert [one.residual for one in part[:4]] == [False] * 4  # the sum over ranks comes first
    head = whole[-1]
    assert head.sampled
    assert head.out_dtype == torch.float32
    assert head.module == "model.embed_tokens"


class _Model:
    """What `verify` asks of a model."""

    device, dtype = CPU, BF16

    def __init__(self, shape: ModelConfig = SHAPE) -> None:
        self.config = replace(shape, num_layers=1)

    def products(self) -> Any:
        return exact_mode.products_of(self.config, BF16, None)


def test_what_differs_on_the_card_ends_exact_mode_or_costs_the_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from quire.kernels.triton_ops import TritonOps

    found = [Difference(64, 40, Library(), kept=True)]
    asked = []

    def answer(weight: torch.Tensor, around: Any, _products: Any) -> list[Difference]:
        asked.append((tuple(weight.shape), around.most))
        return found if weight.shape == (1024, 3072) else []

    monkeypatch.setattr(check, "check", answer)
    ops = TritonOps.on(torch.device("meta"), exact=True)
    model: Any = _Model()
    config = EngineConfig(exact="on", max_num_seqs=256)
    exact_mode.verify(config, model, ops)
    assert ops.exact
    (line,) = caplog.messages
    assert "model.layers.0.mlp.down_proj: the library's products of up to 64 rows" in line
    assert len(asked) == 5
    assert ((151_936, 1024), 1280) in asked
    assert ((4096, 1024), 8448) in asked

    found[0] = Difference(64, 40, Library(), kept=False)
    words = r"exact = on: model\.layers\.0\.mlp\.down_proj: no launch"
    with pytest.raises(ConfigError, match=words):
        exact_mode.verify(config, model, ops)
    ops = TritonOps.on(torch.device("meta"), exact=True)
    exact_mode.verify(replace(config, exact="auto"), model, ops)
    assert not ops.exact


@pytest.mark.parametrize(
    ("shape", "differing", "module"),
    [
        (FP8, (1024, 2048), "self_attn.o_proj"),
        (replace(EXPERTS, fp8=Fp8(made_on_load=True)), (128, 1536, 2048), "mlp.experts"),
        (EXPERTS, (128, 1536, 2048), "mlp.experts"),
    ],
)
def test_fp8_weights_and_experts_are_compared_and_refused_where_they_differ(
    shape: ModelConfig,
    differing: tuple[int, ...],
    module: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from quire.kernels.triton_ops import TritonOps

    asked, differ = {}, False

    def product(weight: torch.Tensor, around: check.Fusion, _dtype: torch.dtype) -> int | None:
        asked[tuple(weight.shape)] = around.most
        return 17 if differ and weight.shape == differing else None

    def layer(gate_up: Weight, down: Weight, _mixture: Any, most: int, _: Any) -> int | None:
        assert gate_up.data.shape[0] == down.data.shape[0]
        asked[tuple(gate_up.data.shape)] = most
        return 17 if differ and gate_up.data.shape == differing else None

    monkeypatch.setattr(check, "check", lambda *_: [])
    monkeypatch.setattr(fp8_check, "differs", product)
    monkeypatch.setattr(experts_check, "differs", layer)
    model: Any = _Model(shape)
    config = EngineConfig(exact="on", max_num_seqs=256)
    ops = TritonOps.on(torch.device("meta"), exact=True)
    exact_mode.verify(config, model, ops)
    assert ops.exact
    assert asked[differing] == 8448
    differ = True
    with pytest.raises(ConfigError, match=rf"exact = on: model\.layers\.0\.{module}: no launch"):
        exact_mode.verify(config, model, ops)
    assert not ops.exact
