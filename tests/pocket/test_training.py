"""Training: rows, learning targets, bit-for-bit runs, resuming, and what transformers reads."""

import json
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
from safetensors.torch import load_file
from score import Scorer
from support import programs
from support.patience import PATIENCE

from quire.service.models import pocket

TOOLS = Path(corpus.__file__).parent
SMALL = Shape(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16, vocab_size=4096
)


def _words(out: Path, *extra: str) -> list[str]:
    """The trainer's arguments for a model that is soon trained."""
    words = ["--out", str(out), "--device", "cpu", "--batch-tokens", "512"]
    return [*words, "--layers", "1", "--score-cases", "0", *extra]


def _train(out: Path, *extra: str) -> None:
    """Runs the trainer in a process of its own."""
    command = [sys.executable, str(TOOLS / "train.py"), *_words(out, *extra)]
    subprocess.run(command, check=True, capture_output=True)


# A process a run; what they import, and the tokenizer, which has tests of its own, they share.
IN_TURN = """
import hashlib, json, os, runpy, sys
from pathlib import Path
trainer, tokenizer, out, *runs = sys.argv[1:]
sys.path.insert(0, str(Path(trainer).parent))
import export, torch, vocabulary
from tokenizers import Tokenizer
torch.use_deterministic_algorithms(True)
vocabulary.train = lambda _seed: Tokenizer.from_file(tokenizer)
for run in runs:
    if os.fork() == 0:
        sys.argv[1:] = json.loads(run)
        if "--from" in sys.argv:
            del vocabulary.train  # the other model's is taken
        runpy.run_path(trainer, run_name="__main__")
        sys.exit()
    assert os.wait()[1] == 0
    print(hashlib.sha256((Path(out) / "model.safetensors").read_bytes()).hexdigest(), flush=True)
"""


def _train_in_turn(out: Path, shipped: Path, script: Path, *runs: list[str]) -> list[str]:
    """Runs the trainer once for each list of arguments; the weights' sha256 behind each."""
    script.write_text(IN_TURN)
    words = [json.dumps(_words(out, *run)) for run in runs]
    command = [sys.executable, script, TOOLS / "train.py", shipped / "tokenizer.json", out, *words]
    done = programs.run(command, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if len(line) == 64]


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


@pytest.fixture(scope="module")
def trained(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `out`, of three steps and two more, and `next`, which began with Pocket."""
    here = tmp_path_factory.mktemp("trained")
    out, later = here / "out", ["--out", str(here / "next"), "--steps", "1", "--from", str(shipped)]
    runs = ["--steps", "3"], ["--steps", "2", "--resume"], later
    first, second, unchanged = _train_in_turn(out, shipped, here / "in_turn.py", *runs)
    assert first != second == unchanged
    return here


@pytest.mark.long
def test_a_run_goes_on_from_its_state(trained: Path) -> None:
    out = trained / "out"
    assert ", 5 steps of 512 tokens" in (out / "config.json").read_text()
    for name in ("state-weights.safetensors", "state-momenta.safetensors"):
        assert (out / name).stat().st_size < 16 * 2**20


@pytest.mark.long
def test_a_run_begins_with_another_model(shipped: Path, trained: Path) -> None:
    out, name = trained / "next", "model.embed_tokens.weight"
    begun = load_file(out / "model.safetensors")[name].float()
    base = load_file(shipped / "model.safetensors")[name].float()
    assert not begun.equal(base) and torch.allclose(begun, base, atol=0.02, rtol=0.02)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / file).read_bytes() == (shipped / file).read_bytes()
    before = json.loads((shipped / "config.json").read_text())["training"]
    after = json.loads((out / "config.json").read_text())["training"]
    assert after.startswith(f"{before}; from there seed 0, 1 steps of 512 tokens")


def test_only_the_assistant_is_learnt(encoder: Encoder) -> None:
    batch = encoder.batch(Plan(0, 1024, 0.0), 5)
    flat = batch.tokens.reshape(-1)
    learnt = encoder.tokenizer.decode(flat[batch.targets + 1].tolist(), skip_special_tokens=False)
    text = encoder.tokenizer.decode(flat.tolist(), skip_special_tokens=False)
    turns = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]
    assert learnt.startswith(turns[0] + "<|im_end|>")
    assert "user" not in learnt and "<|im_start|>" not in learnt


def test_thoughts_are_opened_by_who_asks(encoder: Encoder) -> None:
    messages = [corpus.Message("user", "2 + 2"), corpus.Message("assistant", "4", "I add.")]
    ids = np.asarray(encoder.tokenizer.encode(corpus.render(messages)).ids)
    learnt = ids[1:][encoder.spoken(ids)[:-1]].tolist()
    text = encoder.tokenizer.decode(learnt, skip_special_tokens=False)
    assert text == "I add.\n</think>\n\n4<|im_end|>"


def test_all_of_a_plain_text_is_learnt(encoder: Encoder) -> None:
    ids = np.asarray(encoder.tokenizer.encode("Once there was a fox.<|endoftext|>").ids)
    assert encoder.spoken(ids).all()


def test_rows_start_at_position_zero_and_hold_no_target_past_their_end(encoder: Encoder) -> None:
    plan = Plan(0, 4096, 0.0)
    for index in range(6):
        batch = encoder.batch(plan, index)
        chats = batch.tokens[:, 0] == encoder.im_start
        assert chats.any()
        for row in batch.tokens[~chats]:
            assert encoder.im_start not in row
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
    from transformers import AutoModelForCausalLM

    model = Pocket(Shape())
    model.load_state_dict(
        {n: t.float() for n, t in load_file(shipped / "model.safetensors").items()}
    )
    theirs = AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.float32)
    asked = ("sums", "counting", "raw counts continued")
    for cell in (c for c in Maker(encoder.tokenizer).cells() if c.name in asked):
        right = 0
        for case in cell.cases(9, 3):
            ids = torch.tensor([encoder.tokenizer.encode(case.text).ids])
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=120)
            right += encoder.tokenizer.decode(out[0, ids.shape[1] :].tolist()) == case.answer
        score = Scorer(encoder, [cell], 9, 3).scores(model)[0]
        assert score.exact == pytest.approx(right / 3)
