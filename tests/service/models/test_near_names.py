"""A name that is nearly one with a meaning of its own: what may be meant is said."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from quire.engine.config import EngineConfig
from quire.engine.errors import QuireError
from quire.service.models.resolve import resolve


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pockett", "pocket"),
        ("Pocket", "pocket"),
        ("randon:0.6B", "random:0.6B"),
        ("Random", "random"),
        ("Qwen/Qwen3-0.6B", None),
        ("packet-switch", None),
    ],
)
def test_a_near_miss_names_what_may_be_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str | None
) -> None:
    def away(*_args: object, **_more: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(QuireError) as refused:
        resolve(EngineConfig(model=name))
    told = str(refused.value)
    assert (f"(is {meant} meant?)" in told) if meant else ("meant" not in told)


def test_the_home_of_nobody_is_refused_by_the_models_name() -> None:
    with pytest.raises(QuireError, match=r"^model = ~nobody-of-that-name/x: "):
        resolve(EngineConfig(model="~nobody-of-that-name/x"))
