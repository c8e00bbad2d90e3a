"""Faults of chat templates and of the tokenizer's files."""

from faults.fault import Fault

RENDERING = "tests/service/text/test_template_rendering.py::test_"
MARKERS = "tests/service/text/test_template_markers.py::test_"
FILES = "tests/service/text/test_tokenizer_files.py::test_"
WIRE = "tests/service/text/test_templates_served.py::test_"
FORGED = (MARKERS + "a_marker_in_any_content_is_refused_with_its_field",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "templates: the calls of an open message are cut off",
        "service/text/chat_template.py",
        '        if last.get("tool_calls"):',
        '        if last.get("calls"):',
        ("tests/service/text/test_chat_template.py::test_nothing_is_lost_without_a_word",),
    ),
    Fault(
        "templates: the end of an open message is marked by what a client can write",
        "service/text/chat_template.py",
        "        mark = _END_MARK + secrets.token_hex(16)",
        "        mark = _END_MARK[:-1]\n"
        "        while mark in last['content']:\n"
        "            mark += '-X'",
        ("tests/service/text/test_chat_template.py",),
    ),
    Fault(
        "template-special-token-in-a-json-key",
        "service/text/template_values.py",
        '                yield f"{kind}.key", str(key)\n',
        "",
        FORGED,
    ),
    Fault(
        "template-only-special-tokens-are-markers",
        "service/text/template_markers.py",
        "            found.setdefault(kind, set()).add(marker)\n",
        "            pass\n",
        FORGED,
    ),
    Fault(
        "template-markers-by-form-unknown",
        "service/text/template_markers.py",
        "    found[ANYWHERE].update(_FORMS.findall(literals))\n",
        "",
        (MARKERS + "markers_are_found_without_a_vocabulary",),
    ),
    Fault(
        "template-inner-tags-count-everywhere",
        "service/text/template_markers.py",
        "kind = ANYWHERE if outermost else _KINDS[word.group()]",
        "kind = ANYWHERE if outermost else ANYWHERE",
        (MARKERS + "ordinary_text_is_rendered",),
    ),
    Fault(
        "template-thoughts-in-history-refused",
        "service/text/markers.py",
        'markers - self.allowed if kind == "assistant.content" else markers',
        "markers",
        (MARKERS + "ordinary_text_is_rendered",),
    ),
    Fault(
        "template-thoughts-forged-by-users",
        "service/text/markers.py",
        'markers - self.allowed if kind == "assistant.content" else markers',
        "markers - self.allowed",
        FORGED,
    ),
    Fault(
        "template-words-that-are-tokens-refused",
        "service/text/template_markers.py",
        "t for t in added if _BRACKET.search(t) and t in literals",
        "t for t in added if t in literals",
        (MARKERS + "a_word_that_is_an_added_token_is_no_marker",),
    ),
    Fault(
        "template-generation-tag-unknown",
        "service/text/template_environment.py",
        '["jinja2.ext.loopcontrols", GenerationTag]',
        '["jinja2.ext.loopcontrols"]',
        (RENDERING + "tags_filters_and_names_do_what_they_do_in_transformers",),
    ),
    Fault(
        "template-tojson-knows-no-separators",
        "service/text/template_environment.py",
        '            "separators": separators,\n',
        "",
        (RENDERING + "tags_filters_and_names_do_what_they_do_in_transformers",),
    ),
    Fault(
        "template-tool-use-never-chosen",
        "service/text/chat_template.py",
        'if chat.tools and "tool_use" in self._compiled:',
        "if False:",
        (RENDERING + "a_template_for_tools_is_used_where_there_are_tools",),
    ),
    Fault(
        "template-a-mention-counts-as-shown",
        "service/text/template_traits.py",
        "    return mentioned and not rendered\n",
        "    return mentioned\n",
        (RENDERING + "what_a_template_never_shows_is_refused",),
    ),
    Fault(
        "template-rendered-for-each-message",
        "service/text/chat_template.py",
        "        _refuse_ignored(chat, compiled.traits)\n",
        "        _refuse_ignored(chat, compiled.traits)\n"
        "        for _ in chat.messages:\n"
        "            self._render(chat, chat.messages, compiled, limits)\n",
        (RENDERING + "a_chat_is_rendered_once",),
    ),
    Fault(
        "template-bounded-after-it-is-rendered",
        "service/text/template_meter.py",
        "        if self._made > self._most_made:\n",
        "        if False:\n",
        (RENDERING + "a_text_is_bounded_while_it_is_made",),
    ),
    Fault(
        "template-what-a-call-makes-is-known-afterwards",
        "service/text/template_meter.py",
        "            self._fits((1 + self.weight(subject)) * (1 + more + sizes))\n",
        "            self._fits(self.weight(subject) + more + sizes)\n",
        (RENDERING + "and_at_a_call",),
    ),
    Fault(
        "template-numbers-count-whatever-they-are-given-to",
        "service/text/template_environment.py",
        "        if isinstance(subject, VALUES):\n",
        "        if True:\n",
        (RENDERING + "a_large_number_is_repeated_by_what_repeats_alone",),
    ),
    Fault(
        "template-rounds-of-loops-cost-nothing",
        "service/text/template_environment.py",
        "        node.body.insert(0, jinja2.nodes.ExprStmt(step))\n",
        "",
        (RENDERING + "and_at_a_call",),
    ),
    Fault(
        "template-goes-on-when-nobody-waits",
        "service/text/template_meter.py",
        "        check_wanted(self._limits.wanted)\n",
        "",
        (RENDERING + "rendering_ends_when_nobody_waits",),
    ),
    Fault(
        "tokenizer-map-not-read",
        "service/text/tokenizer_files.py",
        "_read_names(files, _read_json(directory / SPECIAL_MAP), directory / SPECIAL_MAP)",
        "pass",
        (FILES + "tokens_are_those_of_transformers",),
    ),
    Fault(
        "tokenizer-added-tokens-not-read",
        "service/text/tokenizer_files.py",
        "        _read_added(files, directory / ADDED)\n",
        "",
        (FILES + "tokens_are_those_of_transformers",),
    ),
    Fault(
        "tokenizer-decoder-not-read",
        "service/text/tokenizer_files.py",
        '        _read_decoder(files, config["added_tokens_decoder"], path)\n',
        "        pass\n",
        (FILES + "tokens_are_those_of_transformers",),
    ),
    Fault(
        "tokenizer-additional-templates-not-read",
        "service/text/tokenizer_files.py",
        "    files.templates |= {file.stem: _read_text(file) for file in named}\n",
        "",
        (FILES + "templates_are_those_of_transformers",),
    ),
    Fault(
        "tokenizer-holds-the-interpreter",
        "service/text/tokenizer.py",
        "self.backend.encode_batch_fast(\n"
        "            [text], add_special_tokens=add_special_tokens\n        )[0]",
        "self.backend.encode(text, add_special_tokens=add_special_tokens)",
        (FILES + "other_threads_run_while_a_text_is_tokenized",),
    ),
    Fault(
        "template-judged-after-the-weights",
        "service/app/server.py",
        "        tokenizer, chat = await asyncio.to_thread(\n",
        "        await self._engine.start(progress)\n"
        "        tokenizer, chat = await asyncio.to_thread(\n",
        (WIRE + "a_broken_template_is_told_before_weights_are_read",),
    ),
    Fault(
        "template-two-bytes-become-eighty",
        "service/rpc/prompts.py",
        "        if parts > self.longest:\n",
        "        if False:\n",
        (WIRE + "a_chat_of_more_parts_than_tokens_is_refused_before_it_is_built",),
    ),
    Fault(
        "templates: a million fields are filled in each trial of a template",
        "service/text/template_meter.py",
        '        self.steps(text.count("%"))\n',
        "",
        (RENDERING + "a_template_that_makes_much_of_nothing_is_refused_at_load",),
    ),
    Fault(
        "templates: trials of few steps go on when their time is over",
        "service/text/template_traits.py",
        "        if left <= 0:\n",
        "        if left < -3600:\n",
        (RENDERING + "a_template_is_loaded_in_so_much_time_and_no_more",),
    ),
    Fault(
        "tokenizer: an added token behind a gap has another id than its file says",
        "service/text/tokenizer.py",
        "        if vocabulary.get(token) != token_id:\n",
        "        if token not in vocabulary:\n",
        (FILES + "a_token_that_would_get_another_id_is_refused",),
    ),
    Fault(
        "tokenizer: two tokens have one id",
        "service/text/tokenizer.py",
        "        if by_id.setdefault(token_id, token) != token:\n",
        "        if not token:\n",
        (FILES + "a_token_that_would_get_another_id_is_refused",),
    ),
    Fault(
        "templates: a thread keeps the call that it rendered last",
        "service/text/template_environment.py",
        "            self.meter.begin(_NOBODYS)\n",
        "            pass\n",
        (
            "tests/service/text/test_template_rendering.py"
            "::test_nothing_of_a_call_is_kept_until_its_thread_renders_again",
        ),
    ),
)
