"""Tokens count wherever a file says them: as in AutoTokenizer, for every combination of files."""

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quire.engine.errors import ModelError
from quire.engine.request import Constraint, Vocabulary
from quire.service.constraints.grammars import Grammars
from quire.service.models import pocket
from quire.service.text.chat_template import ChatTemplate, Conversation
from quire.service.text.tokenizer import load

VOCAB_SIZE = 4096 + 64
CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
TEXT = "a<|im_end|> <plain> <ctl> <tool_response> <eos2>b <more> <|x|> <image>c"


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False} | flags


DECODER = {
    "4096": token("<plain>", normalized=True, special=False),
    "4097": token("<ctl>", normalized=False, special=True),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bare": {},
    "eos": {"eos_token": "<eos2>"},
    "image": {"eos_token": "<|im_end|>", "image_token": "<image>"},
    "decoder": {"added_tokens_decoder": DECODER},
    "decoder and eos": {"added_tokens_decoder": DECODER, "eos_token": "<ctl>"},
    "lists": {"additional_special_tokens": ["<|x|>", "<more>"], "eos_token": "<|im_end|>"},
    "names": {"extra_special_tokens": {"more_token": "<more>"}},
}
MAPS: dict[str, dict[str, Any] | None] = {
    "no map": None,
    "eos in the map": {"eos_token": "<eos2>", "pad_token": "<|im_end|>"},
    "eos as an object": {"eos_token": token("<eos2>", normalized=False)},
}
ADDED: dict[str, dict[str, int] | None] = {
    "nothing added": None,
    "added": {"<tool_response>": 4097, "<eos2>": 4096},
}


def write(directory: Path, name: str, content: Any) -> None:
    if content is not None:
        (directory / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copy(pocket.directory() / "tokenizer.json", tmp_path)
    write(tmp_path, "tokenizer_config.json", CLASS)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "special_map", "added"), list(itertools.product(CONFIGS, MAPS, ADDED))
)
def test_tokens_are_those_of_transformers(
    directory: Path, config: str, special_map: str, added: str
) -> None:
    write(directory, "tokenizer_config.json", CLASS | CONFIGS[config])
    write(directory, "special_tokens_map.json", MAPS[special_map])
    write(directory, "added_tokens.json", ADDED[added])
    theirs = AutoTokenizer.from_pretrained(str(directory))
    ours = load(directory, VOCAB_SIZE)
    assert ours.encode(TEXT, add_special_tokens=False) == theirs.encode(
        TEXT, add_special_tokens=False
    )
    assert dict(ours.template_tokens) == theirs.special_tokens_map
    eos = theirs.eos_token_id
    assert ours.eos_token_ids == (() if eos is None else (eos,))
    decoder = theirs.added_tokens_decoder
    assert set(ours.special_tokens) == {t.content for t in decoder.values() if t.special}
    assert set(ours.added_tokens) == {t.content for t in decoder.values() if not t.special}
    assert ours.size == max(theirs.get_vocab().values()) + 1
    for i, t in decoder.items():
        assert ours.text_pieces[i] == (b"" if t.special else t.content.encode())


TEMPLATES: dict[str, dict[str, Any]] = {
    "a text": {"chat_template": "c"},
    "named": {
        "chat_template": [
            {"name": "default", "template": "cd"},
            {"name": "tool_use", "template": "ct{{ tools }}"},
        ]
    },
    "none": {},
}


@pytest.mark.parametrize("config", TEMPLATES)
@pytest.mark.parametrize("file", [None, "f"])
@pytest.mark.parametrize("more", [{}, {"tool_use": "mt{{ tools }}"}, {"default": "md"}])
def test_templates_are_those_of_transformers(
    directory: Path, config: str, file: str | None, more: dict[str, str]
) -> None:
    write(directory, "tokenizer_config.json", CLASS | TEMPLATES[config])
    if file is not None:
        (directory / "chat_template.jinja").write_text(file, encoding="utf-8")
    for name, text in more.items():
        (directory / "additional_chat_templates").mkdir(exist_ok=True)
        (directory / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    theirs = AutoTokenizer.from_pretrained(str(directory)).chat_template
    ours = load(directory, VOCAB_SIZE).chat_templates
    assert ours == ({"default": theirs} if isinstance(theirs, str) else theirs or {})


BROKEN: list[tuple[str, Any, str]] = [
    ("tokenizer_config.json", [], "tokenizer_config.json: not a JSON object"),
    ("tokenizer_config.json", {"eos_token": 7}, "tokenizer_config.json: eos_token: neither"),
    ("tokenizer_config.json", {"chat_template": 7}, "tokenizer_config.json: chat_template"),
    ("tokenizer_config.json", {"chat_template": ["x"]}, "chat_template: None: not a name with"),
    ("tokenizer_config.json", {"split_special_tokens": "false"}, "split_special_tokens: must be"),
    (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"5": {"content": "<x>", "special": "false"}}},
        "added_tokens_decoder: 5: special: must be true or false",
    ),
    (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"x": {}}},
        "tokenizer_config.json: added_tokens_decoder: 'x'",
    ),
    (
        "tokenizer_config.json",
        {"chat_template": "{% for %}"},
        "tokenizer_config.json: chat template, line 1",
    ),
    ("special_tokens_map.json", {"eos_token": {}}, "special_tokens_map.json: eos_token: neither"),
    (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"9" * 5000: {"content": "<x>"}}},
        "not an id with an object",
    ),
    ("tokenizer_config.json", {"eos_token": "\ud800"}, "tokenizer_config.json: not JSON"),
    ("added_tokens.json", {"\ud800": 5}, "added_tokens.json: not JSON"),
    ("added_tokens.json", {"<x>": "1"}, "added_tokens.json: '<x>': not an id"),
    ("added_tokens.json", {f"<{i}>": 4096 + i for i in range(65)}, "ids up to 4160"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_is_named(directory: Path, name: str, content: Any, message: str) -> None:
    write(directory, name, content)
    with pytest.raises(ModelError) as caught:
        ChatTemplate.of(load(directory, VOCAB_SIZE))
    assert message in str(caught.value)
    assert str(directory) in str(caught.value)


def test_a_key_that_stands_twice_is_refused(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text('{"eos_token": "<x>", "eos_token": "<y>"}')
    with pytest.raises(ModelError, match=r'tokenizer_config\.json: .*"eos_token" stands twice'):
        load(directory, VOCAB_SIZE)


def edited(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    write(directory, "tokenizer.json", content)


def without_3000(content: dict[str, Any]) -> None:
    """No token has this id, and none is made of it."""
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    gone = next(token for token, token_id in vocabulary.items() if token_id == 3000)
    del vocabulary[gone]
    pairs = [(one, one if isinstance(one, list) else one.split(" ")) for one in merges]
    content["model"]["merges"] = [one for one, pair in pairs if gone not in (*pair, "".join(pair))]


def test_an_id_that_no_token_has_is_no_text_and_never_drawn(directory: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        without_3000(content)
        content["added_tokens"] = content["added_tokens"][:3]  # in the vocabulary themselves

    edited(directory, edit)
    tokenizer = load(directory, VOCAB_SIZE)
    assert tokenizer.pieces[3000] == b"" and tokenizer.pieces[3001] != b""
    ids = tokenizer.encode("Hello there", add_special_tokens=False)
    assert b"".join(tokenizer.pieces[i] for i in ids) == b"Hello there"
    grammars = Grammars()
    grammars.set_vocabulary(Vocabulary(tokenizer.backend.to_str(), VOCAB_SIZE, (0,)))
    matcher = grammars.compile(Constraint("regex", ".*"))
    mask = matcher.mask()
    assert not mask[3000 >> 3] & 1 << (3000 & 7) and mask[3001 >> 3] & 1 << (3001 & 7)
    for i in ids:
        matcher.accept(i)


def far_token(content: dict[str, Any]) -> None:
    last = content["added_tokens"][-1]
    content["added_tokens"].append({**last, "id": 4150, "content": "<far>"})


def twice(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary[next(token for token, token_id in vocabulary.items() if token_id == 3001)] = 3000


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (far_token, "the added token '<far>' has the id 4150 in its file, and 4096 where it is"),
        (without_3000, "the added token '<think>' has the id 4090 in its file, and 4089 where"),
        (twice, "both have the id 3000"),
    ],
)
def test_a_token_that_would_get_another_id_is_refused(
    directory: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edited(directory, edit)
    with pytest.raises(ModelError, match=re.escape(message)):
        load(directory, VOCAB_SIZE)


def test_a_token_of_a_file_beside_has_the_id_that_it_says(directory: Path) -> None:
    write(directory, "tokenizer_config.json", CLASS)
    write(directory, "added_tokens.json", {"<new>": 4098})
    with pytest.raises(ModelError, match=r"'<new>' has the id 4098 .* and 4096 where"):
        load(directory, VOCAB_SIZE)


def test_a_chat_has_the_ids_that_it_has_in_transformers(directory: Path) -> None:
    source = (pocket.directory() / "tokenizer_config.json").read_text(encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(source, encoding="utf-8")
    write(directory, "added_tokens.json", ADDED["added"])
    theirs = AutoTokenizer.from_pretrained(str(directory))
    tokenizer = load(directory, VOCAB_SIZE)
    ours = ChatTemplate.of(tokenizer)
    assert ours is not None
    messages = ({"role": "user", "content": "Wie wird's?"}, {"role": "assistant", "content": "Gut"})
    for count in (1, 2):
        chat = Conversation(messages[:count])
        ids = theirs.apply_chat_template(
            list(messages[:count]), add_generation_prompt=True, return_dict=False
        )
        assert tokenizer.encode(ours.render(chat), add_special_tokens=False) == ids


class OneAtATime:
    """A backend whose `encode` would hold the interpreter."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode(self, *_: Any, **__: Any) -> None:
        raise AssertionError("no other thread runs while the library's encode does")

    def encode_batch_fast(self, *texts: Any, **options: Any) -> Any:
        return self._backend.encode_batch_fast(*texts, **options)


def test_other_threads_run_while_a_text_is_tokenized(directory: Path) -> None:
    tokenizer = load(directory, VOCAB_SIZE)
    backend: Any = OneAtATime(tokenizer.backend)
    careful = dataclasses.replace(tokenizer, backend=backend)
    ids = careful.encode("a<|im_end|>b", add_special_tokens=True)
    assert ids == tokenizer.backend.encode("a<|im_end|>b").ids


def test_a_text_is_the_same_ids_each_time(directory: Path) -> None:
    """Merges that are left out by chance are of training: no prefix would be found again."""
    path = directory / "tokenizer.json"
    whole = load(directory, VOCAB_SIZE).encode(TEXT, add_special_tokens=False)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["dropout"] = 0.9
    write(directory, "tokenizer.json", content)
    varied = load(directory, VOCAB_SIZE)
    assert [varied.encode(TEXT, add_special_tokens=False) for _ in range(3)] == [whole] * 3
