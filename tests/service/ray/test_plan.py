"""What `quire ray` takes, and what it refuses before Ray is asked for anything."""

import os
from collections import Counter
from pathlib import Path

import pytest

from quire.clients.replicas.affinity import Memory, keys_of, score, seed_of
from quire.engine.errors import ConfigError
from quire.service.ray.application_plan import Plan
from quire.service.ray.ranking import ranked
from quire.service.ray.ray_defaults import RAY_DEFAULTS, set_ray_defaults
from quire.v1 import inference_pb2 as pb


def test_a_plan_of_texts_is_one_of_values() -> None:
    plan = Plan.of({"replicas": "3", "cpus": "0.5", "model": "pocket"})
    assert (plan.replicas, plan.cpus) == (3, 0.5)
    assert plan.settings().service.port == plan.settings().service.http_port == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": "0"}, "replicas = 0"),
        ({"replicas": "x"}, "replicas = 'x': must be of type int"),
        ({"replicas": "3", "max_replicas": "2"}, "max_replicas = 2: less than replicas = 3"),
        ({"port": "8000"}, "port = 8000: is http_port too"),
        ({"target_ongoing": "0"}, "target_ongoing = 0.0"),
        ({"gpu": "1"}, "gpu: no such option"),
        ({"message_interval": "11"}, "message_interval = 11.0: must be 0 to 10"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        Plan.of(values)


def test_a_port_of_the_replicas_own_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "quire.toml"
    file.write_text("[service]\nmetrics_port = 9100\n")
    with pytest.raises(ConfigError, match="metrics_port = 9100: not under Ray"):
        Plan(config=str(file))


def test_messages_have_an_interval_and_one_place_to_say_so(tmp_path: Path) -> None:
    def seconds(plan: Plan) -> float:
        return plan.settings().service.message_interval_seconds

    assert (seconds(Plan()), seconds(Plan(message_interval=0.0))) == (0.08, 0.0)
    file = tmp_path / "quire.toml"
    file.write_text("[service]\nmessage_interval_seconds = 0.2\n")
    with pytest.raises(ConfigError, match="under Ray it is the option message_interval"):
        Plan(config=str(file))


def test_the_environment_overrules_ray_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, *others = RAY_DEFAULTS
    for name in RAY_DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(own, "as it was")
    set_ray_defaults()
    assert os.environ[own] == "as it was"
    assert all(os.environ[name] == RAY_DEFAULTS[name] for name in others)
    for name in others:  # what was not there before is not put back by itself
        monkeypatch.delenv(name)


def test_ray_s_router_ranks_as_the_clients_own_choice() -> None:
    names, memory = [f"r{i}" for i in range(6)], Memory()
    request = pb.GenerateRequest(text="a prompt")
    keys = keys_of(request)
    by_hash = sorted(names, key=lambda name: score(keys.root, seed_of(name)), reverse=True)
    assert ranked(names, Counter(), memory, keys) == by_hash
    memory.note(keys, by_hash[3])
    assert ranked(names, Counter(), memory, keys)[0] == by_hash[3], "where it went before"
    full = Counter({by_hash[3]: 9})
    assert ranked(names, full, memory, keys)[0] == by_hash[0], "unless that is too full"
    assert ranked(names, full, memory, keys)[-1] == by_hash[3]
    busy = Counter(dict.fromkeys(names, 16) | {by_hash[0]: 18, by_hash[3]: 18})
    assert ranked(names, busy, memory, keys)[0] == by_hash[3], "fuller than the mean, and it has it"
    assert ranked(names, busy, Memory(), keys)[0] == by_hash[1], "a prompt that is new fills none"
    assert ranked(["b", "a"], Counter({"a": 1}), memory, None) == ["b", "a"]
