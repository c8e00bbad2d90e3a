"""Large models over several GPUs: what a kernel takes in a step, of what a profile says."""

from types import SimpleNamespace

from support.benchmark_code import large


def test_a_kernel_is_timed_from_the_end_of_the_one_that_it_waits_for() -> None:
    found = [
        ("product", 0, 20),
        (large.EXCHANGE, 2, 25),
        ("product", 26, 30),
        (large.EXCHANGE, 32, 36),
    ]
    events = [
        SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end))
        for name, start, end in found
    ]
    assert large.alone(events, large.EXCHANGE) == [5, 4]
