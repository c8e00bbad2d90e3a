"""Which replica a prompt belongs to."""

from collections import Counter

from quire.clients.prompts import build_request
from quire.clients.replicas.affinity import (
    PIECE_IDS,
    ROOT_PIECES,
    Memory,
    PromptKeys,
    keys_of,
    score,
    seed_of,
)

NAMES = [f"10.0.0.{i}:50051" for i in range(10)]
SEEDS = {name: seed_of(name) for name in NAMES}


def keys(prompt: object, **options: object) -> PromptKeys:
    return keys_of(build_request(prompt, options))  # type: ignore[arg-type]


def turns(*words: str) -> list[dict[str, str]]:
    roles = ["system", *["user", "assistant"] * len(words)]
    return [{"role": role, "content": word} for role, word in zip(roles, words, strict=False)]


def wanted(root: int, names: list[str]) -> str:
    return max(names, key=lambda name: score(root, SEEDS[name]))


def test_turns_of_a_conversation_belong_together() -> None:
    first, second = keys(turns("be good", "hi")), keys(turns("be good", "hi", "hello", "and?"))
    assert first.root == second.root
    assert second.prefixes[: len(first.prefixes)] == first.prefixes


def test_conversations_under_one_system_prompt_are_spread() -> None:
    roots = [keys(turns("the same for all", f"question {i}")).root for i in range(2000)]
    counts = Counter(wanted(root, NAMES) for root in roots)
    assert len(counts) == len(NAMES)
    assert max(counts.values()) < 1.5 * 2000 / len(NAMES)


def test_what_changes_the_cache_changes_the_key() -> None:
    chat = turns("be good", "hi")
    tool = {"name": "f", "description": None, "parameters": {}}
    plain = keys(chat).root
    others = [keys(chat, cache_salt="s").root, keys(chat, tools=[tool]).root]
    others.append(keys(chat, chat_template_kwargs={"enable_thinking": False}).root)
    assert len({plain, *others}) == 4


def test_ids_are_cut_into_pieces_and_only_whole_ones_count() -> None:
    ids = list(range(1, 1000))
    whole = keys(ids[: 20 * PIECE_IDS])
    assert len(whole.prefixes) == 20
    assert keys(ids[: 20 * PIECE_IDS + 5]).prefixes == whole.prefixes
    assert whole.root == int.from_bytes(whole.prefixes[ROOT_PIECES - 1], "little")
    assert keys([*ids[:20], 5]).prefixes == keys(ids[:16]).prefixes
    assert keys([1, 2]).root != keys([1, 3]).root


def test_text_is_cut_as_ids_are() -> None:
    long = "once upon a time " * 100
    assert keys(long).root == keys(long + "and more").root != keys("x" + long).root
    assert keys("").prefixes


def test_keys_are_the_same_in_every_process() -> None:
    """Clients agree without talking, so these numbers must never change by chance."""
    assert keys(turns("be good", "hi")).root == 0x33B538937EE1558C
    assert keys([5, 6, 7]).root == 0x171111910E5FB803
    assert score(1, SEEDS[NAMES[0]]) == 0xD0EAFC2CAB772FDE


def test_a_replica_that_goes_takes_only_its_own_along() -> None:
    roots = [keys([i, i + 1]).root for i in range(1000)]
    before = [wanted(root, NAMES) for root in roots]
    after = [wanted(root, NAMES[1:]) for root in roots]
    for old, new in zip(before, after, strict=True):
        assert new == old or old == NAMES[0]


def test_the_next_turn_is_found_where_the_last_one_went() -> None:
    memory = Memory(size=2)
    memory.note(keys(turns("s", "a")), "x:1")
    assert memory.recall(keys(turns("s", "a", "b", "c"))) == "x:1"
    assert memory.recall(keys(turns("s", "other"))) is None
    memory.note(keys(turns("s", "a", "b", "c")), "y:1")
    assert memory.recall(keys(turns("s", "a", "b", "c", "d", "e"))) == "y:1"
    memory.note(keys(turns("s", "z")), "z:1")  # there is room for two
    assert memory.recall(keys(turns("s", "a", "other"))) is None
