"""Faults of Pocket's corpus, its training rows, its evaluation, and of how tags are taken."""

from faults.fault import Fault

_CORPUS = "tests/pocket/test_corpus.py"
_TRAINING = "tests/pocket/test_training.py"
_EVALUATION = "tests/pocket/test_evaluation.py"

FAULTS = (
    Fault(
        "quire.pocket-learns-to-open-thoughts",
        "tools/pocket/rows.py",
        "return (last_open > last_end) & ~opens",
        "return last_open > last_end",
        (f"{_TRAINING}::test_thoughts_are_opened_by_who_asks",),
    ),
    Fault(
        "quire.pocket-forgets-the-last-thoughts",
        "tools/pocket/corpus.py",
        "for at in range(users[-1] if users else 0):",
        "for at in range(len(self.messages)):",
        (f"{_CORPUS}::test_where_thinking_is_on_a_thought_stands_before_the_last_answer",),
    ),
    Fault(
        "quire.pocket-calls-what-is-not-there",
        "tools/pocket/toolbox.py",
        "    call = Call(used.name, {used.parameters[0][0]: city})",
        '    call = Call("get_weather", {used.parameters[0][0]: city})',
        (f"{_CORPUS}::test_each_call_is_of_a_tool_described_and_is_answered",),
    ),
    Fault(
        "quire.pocket-tags-are-not-text",
        "tools/pocket/vocabulary.py",
        "AddedToken(tag, special=False, normalized=False)",
        "AddedToken(tag, special=True, normalized=False)",
        ("tests/pocket/test_vocabulary.py::test_tags_take_the_last_ids_and_are_text",),
    ),
    Fault(
        "quire.pocket-agent-needs-no-tool",
        "tools/pocket/agent.py",
        "self.completed = called and wants",
        "self.completed = wants",
        (f"{_EVALUATION}::test_a_task_is_completed_only_through_the_tools",),
    ),
    Fault(
        "quire.a-tag-of-the-model-may-not-be-written",
        "service/constraints/grammars.py",
        "text, self._tags = tags_as_text(vocabulary.tokenizer)",
        "text, self._tags = vocabulary.tokenizer, {}",
        (
            "tests/service/constraints/test_tags.py::test_a_model_may_write_a_call_with_its_own_tokens",
        ),
    ),
    Fault(
        "quire.a-forced-tag-is-written-in-pieces",
        "service/answers/tool_grammar.py",
        '%llguidance {"no_forcing": true}',
        "%llguidance {}",
        (
            "tests/service/constraints/test_tags.py::test_a_model_may_write_a_call_with_its_own_tokens",
        ),
    ),
    Fault(
        "quire.thoughts-that-the-template-opens-may-be-opened-unasked",
        "service/text/chat_template.py",
        "frozenset() if traits.opens_thoughts else traits.variables",
        "traits.variables",
        (
            "tests/service/constraints/test_thoughts.py"
            "::test_who_opens_thoughts_is_found_in_the_template",
        ),
    ),
)
