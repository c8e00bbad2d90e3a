"""The benchmark of a step's host time drives the engine as it is now."""

from support.benchmark_code import fake_device, host

from quire.engine.config import EngineConfig


def test_every_part_of_a_step_is_measured() -> None:
    engine = fake_device.FakeEngine(EngineConfig(max_num_seqs=2, max_model_len=256), 0.0)
    parts = host.measure(engine, 2, 4)
    assert set(parts) == {"schedule", "launch", "apply", "hand over", "step", "gap"}
    assert parts["hand over"] > 0
