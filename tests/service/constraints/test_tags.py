"""Tags that are tokens of their own, as those of Qwen3, stand in a grammar as text does."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from quire.engine.errors import ConstraintError
from quire.engine.request import Constraint, Vocabulary
from quire.service.answers.events import Syntax
from quire.service.answers.tool_grammar import CallableTool, tool_grammar
from quire.service.constraints.grammars import Grammars
from quire.service.constraints.tags import tags_as_text
from quire.service.models import pocket

TOKENIZER = Tokenizer.from_file(str(Path(pocket.directory()) / "tokenizer.json"))
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
OPENS = TOKENIZER.token_to_id("<tool_call>")


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    made = Grammars()
    made.set_vocabulary(Vocabulary(TOKENIZER.to_str(), 4096, (2,)))
    return made


@pytest.mark.parametrize("must_call", [True, False])
def test_a_model_may_write_a_call_with_its_own_tokens(grammars: Grammars, must_call: bool) -> None:
    tools = [CallableTool("f", {"type": "object"})]
    text = tool_grammar(Syntax.HERMES, tools, grammars.schema_fault, must_call=must_call)
    matcher = grammars.compile(Constraint("grammar", text))
    ids = TOKENIZER.encode(CALL).ids
    assert ids[0] == OPENS
    for token_id in ids:
        assert matcher.mask()[token_id >> 3] & 1 << (token_id & 7), TOKENIZER.decode([token_id])
        matcher.accept(token_id)
    assert matcher.may_end()


def test_a_tag_may_not_stand_where_its_text_may_not(grammars: Grammars) -> None:
    matcher = grammars.compile(Constraint("regex", "[a-z<]+"))
    assert not matcher.mask()[OPENS >> 3] & 1 << (OPENS & 7)
    with pytest.raises(ConstraintError):
        matcher.accept(OPENS)


def test_special_tokens_are_no_text() -> None:
    content = json.loads(tags_as_text(TOKENIZER.to_str())[0])
    assert [token["content"] for token in content["added_tokens"]] == [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    ]  # fmt: skip
    assert content["model"]["vocab"]["<tool_call>"] == OPENS
