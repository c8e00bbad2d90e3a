"""Training: rows, learning targets, bit-for-bit runs, resuming, and what transformers reads."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import corpus
import numpy as np
import pytest
import torch
from cells import Maker
from network import Pocket, Shape
from optim import Muon, Optimizers, orthogonal
from rows import Batches, Encoder, Plan
from score import Scorer

from quire.service.models import pocket

TOOLS = Path(corpus.__file__).parent
SMALL = Shape(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16, vocab_size=4096
)


def _train(out: Path, *extra: str) -> str:
    """Runs the trainer in a process of its own; the weights' sha256."""
    command = [sys.executable, str(TOOLS / "train.py"), "--out", str(out), "--device", "cpu"]
    command += ["--batch-tokens", "512", "--layers", "1", "--score-cases", "0", *extra]
    subprocess.run(command, check=True, capture_output=True)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three steps leave behind."""
    out = tmp_path_factory.mktemp("trained")
    _train(out, "--steps", "3")
    return out


@pytest.mark.long
def test_a_run_of_twenty_steps_repeats_bit_for_bit(tmp_path: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    _train(once, "--steps", "20")
    _train(again, "--steps", "20", "--workers", "1")
    names = sorted(path.name for path in once.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        if "state" not in name:
            assert (once / name).read_bytes() == (again / name).read_bytes(), name
    pocket.verify(once)


def test_a_run_goes_on_from_its_state(trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "copy"))
    first = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert _train(out, "--steps", "2", "--resume") != first
    assert ", 5 steps of 512 tokens" in (out / "config.json").read_text()
    for name in ("state-weights.safetensors", "state-momenta.safetensors"):
        assert (out / name).stat().st_size < 16 * 2**20


def test_only_the_assistant_is_learnt(encoder: Encoder) -> None:
    batch = encoder.batch(Plan(0, 1024, 0.0), 5)
    flat = batch.tokens.reshape(-1)
    learnt = encoder.tokenizer.decode(flat[batch.targets + 1].tolist(), skip_special_tokens=False)
    text = encoder.tokenizer.decode(flat.tolist(), skip_special_tokens=False)
    turns = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]
    assert learnt.startswith(turns[0] + "<|im_end|>")
    assert "user" not in learnt and "<|im_start|>" not in learnt


def test_rows_start_at_position_zero_and_hold_no_target_past_their_end(encoder: Encoder) -> None:
    plan = Plan(0, 4096, 0.0)
    for index in range(6):
        batch = encoder.batch(plan, index)
        assert (batch.tokens[:, 0] == encoder.im_start).all()
        assert ((batch.targets + 1) % batch.tokens.shape[1] != 0).all()


def test_worker_processes_make_the_same_batches(shipped: Path) -> None:
    plan = Plan(3, 1024, 2048.0)
    alone = iter(Batches(shipped / "tokenizer.json", plan, 2, 0))
    pool = Batches(shipped / "tokenizer.json", plan, 2, 2)
    try:
        for expected, found in zip((next(alone) for _ in range(5)), pool, strict=False):
            assert expected.index == found.index
            assert np.array_equal(expected.tokens, found.tokens)
            assert np.array_equal(expected.targets, found.targets)
    finally:
        pool.close()


def test_short_rows_come_first() -> None:
    plan = Plan(0, 1000, 40_000.0)
    assert {plan.length(index) for index in range(10)} == {256}
    assert {plan.length(index) for index in range(40, 200)} == {256, 512, 1024, 2048}


def test_muon_makes_updates_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 24), (2, 16, 48), (2, 48, 16)):
        singular = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert singular.min() > 0.1 and 0.8 < singular.mean() < 1.2 and singular.max() < 1.4


def test_each_parameter_belongs_to_one_optimizer() -> None:
    model = Pocket(SMALL)
    both = Optimizers(model, 0.02, 0.003)
    muon = [p for group in both.muon.groups for p in group]
    adam = [p for group in both.adam.param_groups for p in group["params"]]
    assert sorted(map(id, muon + adam)) == sorted(map(id, model.parameters()))
    assert isinstance(both.muon, Muon) and len(muon) == 7 * SMALL.num_hidden_layers


def test_the_network_is_qwen3(tmp_path: Path, encoder: Encoder) -> None:
    import export
    import vocabulary
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = Pocket(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter)).copy_(parameter.bfloat16())
    vocabulary.save(encoder.tokenizer, tmp_path)
    export.write_model(model, encoder, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, SMALL.vocab_size, (2, 70))
    with torch.no_grad():
        ours = model.logits(model.hidden(tokens))
        assert torch.allclose(ours, theirs(tokens).logits, atol=2e-4, rtol=1e-4)


def test_teacher_forcing_agrees_with_generation(shipped: Path, encoder: Encoder) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = Pocket(Shape())
    model.load_state_dict(
        {n: t.float() for n, t in load_file(shipped / "model.safetensors").items()}
    )
    theirs = AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.float32)
    cells = [c for c in Maker(encoder.tokenizer).cells() if c.name in ("sums", "counting")]
    for cell in cells:
        right = 0
        for case in cell.cases(9, 6):
            ids = torch.tensor([encoder.tokenizer.encode(case.text).ids])
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=120)
            right += encoder.tokenizer.decode(out[0, ids.shape[1] :].tolist()) == case.answer
        score = Scorer(encoder, [cell], 9, 6).scores(model)[0]
        assert score.exact == pytest.approx(right / 6)
