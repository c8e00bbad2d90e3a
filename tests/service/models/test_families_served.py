"""Checkpoints of other families served whole: templates, tokens, lists of ends."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import grpc
from support.harness import Running, ask, generate, run
from support.model_server import served

from quire.engine.model.config import LLAMA, QWEN2, Llama3Scaling, ModelConfig
from quire.engine.weights.random import save_random
from quire.service.models import pocket
from quire.v1 import inference_pb2 as pb

FIRST = 4096  # the ids behind pocket's tokens
LLAMA_TOKENS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>"),
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
BEGIN, END, HEADER, END_HEADER, EOM, EOT = range(FIRST, FIRST + len(LLAMA_TOKENS))
TINY = replace(
    ModelConfig.named_shape("tiny"), vocab_size=4160, num_layers=1, stored_dtype="float32"
)


def write_llama(directory: Path) -> None:
    """A tokenizer with Llama 3's special tokens, one of which begins every text."""
    scaling = Llama3Scaling(8.0, 1024, 1.0, 4.0)
    config = replace(TINY, architecture=LLAMA, rope_scaling=scaling, eos_token_ids=(END, EOM, EOT))
    save_random(config, directory)
    tokenizer = json.loads((pocket.directory() / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for token_id, content in enumerate(LLAMA_TOKENS, start=FIRST):
        token = {"id": token_id, "content": content, "special": True} | flags
        tokenizer["added_tokens"].append(token)
    begin = {"SpecialToken": {"id": LLAMA_TOKENS[0], "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {
            LLAMA_TOKENS[0]: {"id": LLAMA_TOKENS[0], "ids": [BEGIN], "tokens": [LLAMA_TOKENS[0]]}
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = {
        "bos_token": LLAMA_TOKENS[0],
        "eos_token": "<|eot_id|>",
        "chat_template": LLAMA_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(about))


def write_qwen2(directory: Path) -> None:
    """Its template and its tokens are pocket's: ChatML."""
    save_random(replace(TINY, architecture=QWEN2, eos_token_ids=(2, 0)), directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket.directory() / name, directory)


def asked(**fields: object) -> pb.GenerateRequest:
    request = ask(temperature=0, **fields)
    request.chat.messages.add(role="user", content=" Hello there ")
    return request


async def check_ends(running: Running, ends: tuple[int, ...]) -> None:
    """Each id of the list ends an answer, and no other does."""
    for token_id in ends:
        answer = await generate(running, asked(max_tokens=5, logit_bias={token_id: 100.0}))
        assert answer.code is grpc.StatusCode.OK, answer.details
        (finished,) = answer.finished
        assert finished.reason == pb.FINISH_REASON_STOP, token_id
        assert answer.text() == ""
    answer = await generate(running, asked(max_tokens=5, logit_bias={HEADER: 100.0}))
    assert answer.finished[0].reason == pb.FINISH_REASON_LENGTH
    assert answer.finished[0].usage.completion_tokens == 5


def test_a_llama_s_template_tokens_and_ends(tmp_path: Path) -> None:
    write_llama(tmp_path)

    async def test() -> None:
        async with served(str(tmp_path), TINY.vocab_size) as running:
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=" Hello there ")])
            ids = (await running.stub.Tokenize(pb.TokenizeRequest(chat=chat))).token_ids
            assert list(ids[:2]) == [BEGIN, HEADER]  # the template's own beginning, no second one
            assert [i for i in ids if i >= FIRST][2:] == [END_HEADER, EOT, HEADER, END_HEADER]
            text = (await running.stub.Tokenize(pb.TokenizeRequest(text="Hello there"))).token_ids
            assert list(text[:1]) == [BEGIN] and BEGIN not in text[1:]
            await check_ends(running, (END, EOM, EOT))
            answer = await generate(running, asked(max_tokens=12, ignore_eos=True))
            assert len(answer.ids()) == 12

    run(test)


def test_a_qwen2_s_template_tokens_and_ends(tmp_path: Path) -> None:
    write_qwen2(tmp_path)

    async def test() -> None:
        async with served(str(tmp_path), TINY.vocab_size) as running:
            await check_ends(running, (2, 0))

    run(test)
