"""`quire generate`: one prompt, its tokens as they arrive.

Invariant: standard output holds only the model's text, so that it can be piped.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from quire.clients.arguments import file_text, show
from quire.clients.client import Generation
from quire.clients.commands import common, sampling
from quire.clients.commands.option_names import named
from quire.clients.commands.terminal import note, say, warn
from quire.clients.errors import InvalidRequest, OptionError
from quire.clients.events import Collector, Delta, Event, Finished
from quire.clients.prompts import Prompt

DEFAULT_MAX_TOKENS = 1024
_ID_DIGITS = 10


@common.one_line_errors
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` reads standard input.")],
    ids: Annotated[
        bool, typer.Option("--ids", help="Read the prompt as token ids: `1 2 3`.")
    ] = False,
    ids_only: Annotated[
        bool, typer.Option("--ids-only", help="Print ids instead of text.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Send plain text, not a chat.")] = False,
    system: Annotated[str | None, typer.Option(help="System message before the prompt.")] = None,
    allow_special_tokens: sampling.AllowSpecialTokens = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per event.")] = False,
    request_id: Annotated[str | None, typer.Option(help="Name of the request in logs.")] = None,
    priority: Annotated[int | None, typer.Option(help="The higher runs first.")] = None,
    cache_salt: Annotated[
        str | None, typer.Option(help="Share cached prefixes only with the same salt.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Refuse if another model is served.")] = None,
    temperature: sampling.Temperature = None,
    top_p: sampling.TopP = None,
    top_k: sampling.TopK = None,
    min_p: sampling.MinP = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    presence_penalty: sampling.PresencePenalty = None,
    frequency_penalty: sampling.FrequencyPenalty = None,
    seed: sampling.Seed = None,
    n: sampling.N = None,
    max_tokens: sampling.MaxTokens = None,
    min_tokens: sampling.MinTokens = None,
    stop: sampling.Stop = None,
    include_stop_str_in_output: sampling.IncludeStop = False,
    stop_token_ids: sampling.StopTokenIds = None,
    ignore_eos: sampling.IgnoreEos = False,
    logprobs: sampling.Logprobs = None,
    prompt_logprobs: sampling.PromptLogprobs = None,
    logit_bias: sampling.LogitBias = None,
    allowed_token_ids: sampling.AllowedTokenIds = None,
    banned_token_ids: sampling.BannedTokenIds = None,
    json_schema: Annotated[
        str | None, typer.Option(help="Answer in JSON valid for this schema: its text, or @FILE.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Answer in text that matches this as a whole.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="Answer with one of these texts; repeat for each.")
    ] = None,
    address: common.Address = None,
    routing: common.Routing = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = None,
) -> None:
    """Answer one prompt; tokens appear as they come.

    The prompt is sent as a user's message, or as plain text where the model has no chat template.
    Without --max-tokens an answer ends after 1,024 tokens.
    """
    if logprobs is not None and not as_json:
        raise OptionError("--logprobs: needs --json, which shows them")
    if prompt_logprobs is not None and not as_json:
        raise OptionError("--prompt-logprobs: needs --json, which shows them")
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    text = sys.stdin.read() if prompt == "-" else prompt
    with common.connected(address, api_key, secure, timeout, named, routing) as client:
        ask = functools.partial(
            client.generate,
            ids_only=ids_only or None,
            request_id=request_id,
            priority=priority,
            cache_salt=cache_salt,
            model=model,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            n=n,
            min_tokens=min_tokens,
            stop=stop or None,
            include_stop_str_in_output=include_stop_str_in_output or None,
            stop_token_ids=stop_token_ids or None,
            ignore_eos=ignore_eos or None,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logit_bias=sampling.read_bias(logit_bias),
            allowed_token_ids=allowed_token_ids or None,
            banned_token_ids=banned_token_ids or None,
            constraint=_constraint(json_schema, regex, choice),
        )
        show = functools.partial(
            _show,
            as_json=as_json,
            ids_only=ids_only,
            several=(n or 1) > 1,
            capped=max_tokens is None,
        )
        chosen = ids or raw or system is not None
        asked, special = _prompt(text, ids, raw, system), allow_special_tokens or None

        def answer(prompt: Prompt, **more: Any) -> None:
            show(ask(prompt, **more))

        _give_way(answer, asked, text, max_tokens, special, chosen=chosen)


def _give_way(
    answer: Callable[..., None],
    asked: Prompt,
    text: str,
    max_tokens: int | None,
    special: bool | None,
    *,
    chosen: bool,
) -> None:
    """Answer; what the server refuses and the user has not asked for gives way: the default limit,
    and the form of a chat. text: the prompt as plain text; chosen: the user has said its form."""
    cap: int | None = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    while True:
        try:
            return answer(asked, max_tokens=cap, allow_special_tokens=special)
        except InvalidRequest as error:
            if max_tokens is None and cap and _refuses(error, "sampling.max_tokens"):
                cap = None
            elif not chosen and _no_template(error):
                warn("the model has no chat template: sent as plain text, as --raw does")
                asked, special, chosen = text, None, True
            else:
                raise


def _prompt(text: str, ids: bool, raw: bool, system: str | None) -> Prompt:
    if sum((ids, raw, system is not None)) > 1:
        raise OptionError("--ids, --raw and --system exclude each other")
    if ids:
        return _parse_ids(text)
    if raw:
        return text
    turns = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": text}]


def _constraint(
    json_schema: str | None, regex: str | None, choice: list[str] | None
) -> dict[str, Any] | None:
    """Raises OptionError."""
    if json_schema is not None and json_schema.startswith("@"):
        json_schema = file_text(f"--json-schema {json_schema}", Path(json_schema[1:]))
    elif json_schema is not None and json_schema.endswith(".json"):  # which no schema does
        raise OptionError(f"--json-schema {json_schema}: @{json_schema} reads a file")
    kinds = {"json_schema": json_schema, "regex": regex, "choice": choice or None}
    given = {name: value for name, value in kinds.items() if value is not None}
    if len(given) > 1:
        raise OptionError("--json-schema, --regex and --choice exclude each other")
    return given or None


def _no_template(error: InvalidRequest) -> bool:
    """Whether the refusal is that of a model that takes no chats."""
    return _refuses(error, "chat") and "no chat template" in error.details.violations[0].description


def _refuses(error: InvalidRequest, field: str) -> bool:
    """Whether it is this field alone that is refused."""
    return [violation.field for violation in error.details.violations] == [field]


def _parse_ids(text: str) -> Sequence[int]:
    words = text.replace(",", " ").split()
    for word in words:
        if not (word.isascii() and word.isdecimal() and len(word) <= _ID_DIGITS):
            raise OptionError(f"--ids: {show(word)} is not a token id")
    return [int(word) for word in words]


def _show(
    generation: Generation, *, as_json: bool, ids_only: bool, several: bool, capped: bool
) -> None:
    collector = Collector()
    for event in generation:
        collector.add(event)
        if as_json:
            say(json.dumps(as_dict(event), ensure_ascii=False) + "\n")
        elif isinstance(event, Delta) and not several:
            say("".join(f"{i} " for i in event.token_ids) if ids_only else event.text)
    if as_json:
        return
    for completion in collector.completions():
        if several:
            words = " ".join(map(str, completion.token_ids)) if ids_only else completion.text
            say(f"[{completion.index}] {words}\n")
        elif completion.index == 0:
            say("\n")
        note(summary(completion.finished))
        made = completion.finished.completion_tokens
        if capped and made == DEFAULT_MAX_TOKENS and completion.finished.reason == "length":
            warn(f"cut after {DEFAULT_MAX_TOKENS} tokens; --max-tokens sets another limit")


def summary(end: Finished) -> str:
    """One line on how an index ended and where its time went."""
    rate = (
        f", {(end.completion_tokens - 1) / end.decode_seconds:.1f} tokens/s"
        if end.decode_seconds > 0
        else ""
    )
    return (
        f"{end.completion_tokens} tokens, {end.reason}; prompt {end.prompt_tokens}"
        f" ({end.cached_tokens} cached); queued {end.queued_seconds * 1e3:.0f} ms,"
        f" prefill {end.prefill_seconds * 1e3:.0f} ms,"
        f" decode {end.decode_seconds * 1e3:.0f} ms{rate}"
    )


def as_dict(event: Event) -> dict[str, Any]:
    """An event as JSON holds it: its kind, then its fields; bytes become lists of numbers."""
    fields: dict[str, Any] = _plain(dataclasses.asdict(event))
    return {"event": type(event).__name__.lower(), **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
