"""Token ids as bytes: what is packed is what was given, and a prompt is packed once."""

import struct
from types import SimpleNamespace

import pytest
from support.small_engine import Setup, build_core, load_model, model_config, run

from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling import token_bytes
from quire.engine.scheduling.token_bytes import as_array, packed, unpacked

IDS = (0, 1, 255, 70_000, 2**31 - 1)


def test_what_is_packed_is_what_was_given() -> None:
    assert unpacked(packed(IDS)) == unpacked(packed(list(IDS))) == IDS
    assert packed(as_array(IDS)[1:4]) == packed(IDS[1:4]) == packed(IDS)[4:16]
    assert tuple(as_array(IDS)) == IDS and unpacked(packed(())) == ()


def test_an_id_beyond_32_bits_is_refused() -> None:
    with pytest.raises(struct.error):
        as_array((1, 2**31))


def test_a_prompts_ids_are_made_bytes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again for its hashes, for what is compared on a hit, for the upload or for its blocks'
    names."""
    core = build_core(*load_model(model_config(), seed=2), Setup(block_size=4, caching=True))
    made: list[int] = []

    class Counted(struct.Struct):
        def pack(self, *ids: int) -> bytes:
            made.append(len(ids))
            return super().pack(*ids)

    counted = SimpleNamespace(Struct=Counted, unpack=struct.unpack)
    monkeypatch.setattr(token_bytes, "struct", counted)
    prompt = tuple(range(1, 80))
    for key in range(2):
        run(core, [GenerationRequest(key, prompt, SamplingParams(max_tokens=2))])
    assert made == [len(prompt)] * 2
