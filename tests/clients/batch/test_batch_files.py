"""The two files of a batch: what is read before anything is asked, and what survives any end."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire.clients.batch.requests import CHATS, RequestFile
from quire.clients.batch.results import ResultFile
from quire.clients.errors import OptionError
from quire.clients.openai.faults import BadBody

BODY = {"messages": [{"role": "user", "content": "Hi — ü"}]}


def line(custom_id: Any, **more: Any) -> str:
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": CHATS, "body": BODY, **more}
    )


def requests(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(lines))
    return path


def result(custom_id: str, status: int = 200) -> dict[str, Any]:
    body = {"text": "ü\u2028" * 5}
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "batch_req_x", "custom_id": custom_id, "response": response, "error": None}


def test_requests_are_found_again_wherever_they_stand(tmp_path: Path) -> None:
    ids = [f"ü{i}" for i in range(20)]
    path = requests(tmp_path, "", *map(line, ids), "", "  ")
    file = RequestFile(path)
    assert len(file) == 20 and "ü3" in file and "3" not in file
    left = list(file.lines(done={"ü0", "ü7"}))
    assert [one.custom_id for one in left] == [i for i in ids if i not in ("ü0", "ü7")]
    assert left[0].parsed().requests[0].chat.messages[0].content == "Hi — ü"
    path.write_text("\n".join(map(line, reversed(ids))))
    with pytest.raises(OptionError, match="has changed"):
        list(file.lines(done=set()))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((line("a"), line("b"), line("a")), "line 3: custom_id 'a': given twice"),
        ((line("a"), "{nonsense"), "line 2: is not JSON"),
        ((line("a"), '{"custom_id": "b", "body": NaN}'), "line 2: is not JSON: NaN"),
        ((line("a"), f'{{"a": {"1" * 5000}}}'), "line 2: holds a whole number of 5000 digits"),
        (('{"custom_id": "a", "custom_id": "b"}',), "line 1: holds the key 'custom_id' twice"),
        (('{"custom_id": "a", "body": {"n": 1, "n": 2}}',), "line 1: holds the key 'n' twice"),
        (("[1]",), "line 1: must be a JSON object, not a list"),
        (("[" * 100_000,), "line 1: is nested too deep: at most 256 objects and lists"),
        ((f'{{"a": {"[" * 256 + "]" * 256}}}',), "line 1: is nested too deep: at most 256"),
        ((line("a", body={"a": "\ud800"}),), "line 1: holds half of a surrogate pair"),
        (('{"a": 1e999}',), "line 1: holds '1e999', which is beyond the range of a double"),
        ((line(None),), "line 1: custom_id: is missing"),
        ((line(""),), "custom_id: is missing"),
        ((line(7),), "custom_id: text, not int"),
        ((line("\ud800"),), "surrogate"),
    ],
)
def test_a_file_whose_lines_cannot_be_told_apart_is_refused_whole(
    tmp_path: Path, lines: tuple[str, ...], words: str
) -> None:
    with pytest.raises(OptionError) as caught:
        RequestFile(requests(tmp_path, *lines))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"method": "GET"}, "method"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"body": 3}, "body"),
        ({"priority": 3}, "priority"),
        ({"body": {**BODY, "frobnicate": 1}}, "frobnicate"),
        ({"body": {**BODY, "stream": True}}, "stream"),
    ],
)
def test_what_a_line_asks_wrongly_is_its_own_affair(
    tmp_path: Path, more: dict[str, Any], param: str
) -> None:
    file = RequestFile(requests(tmp_path, line("a", **more), line("b")))
    bad, good = file.lines(done=set())
    with pytest.raises(BadBody) as caught:
        bad.parsed()
    assert [fault.field for fault in caught.value.faults] == [param]
    assert good.parsed().requests[0].HasField("chat")


def test_a_line_takes_what_the_http_api_takes(tmp_path: Path) -> None:
    body = {**BODY, "logit_bias": {"5": -1}, "user": "u", "top_k": -1, "priority": 3}
    [one] = RequestFile(requests(tmp_path, line("a", body=body))).lines(done=set())
    [asked] = one.parsed().requests
    assert (dict(asked.sampling.logit_bias), asked.priority) == ({5: -1}, -3)


def test_wherever_a_run_ends_no_result_is_lost_or_doubled(tmp_path: Path) -> None:
    """Cut at every byte: as many whole lines as there are, and nothing else, are kept."""
    path, ids = tmp_path / "results.jsonl", ["ä", "b", "c"]
    file = ResultFile(path, ids)
    for custom_id in ids:
        file.add(custom_id, result(custom_id))
    file.close()
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        file = ResultFile(path, ids)
        kept = whole[:cut].count(b"\n")
        assert file.done == set(ids[:kept])
        for custom_id in ids[kept:]:
            file.add(custom_id, result(custom_id))
        file.close()
        assert path.read_bytes() == whole


def test_zeros_that_a_machine_has_left_at_the_end_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first = json.dumps(result("a")).encode() + b"\n"
    path.write_bytes(first + bytes(5000))
    ResultFile(path, ["a"]).close()
    assert path.read_bytes() == first


def test_a_fault_that_repeats_what_is_no_character_can_be_written(tmp_path: Path) -> None:
    file = RequestFile(requests(tmp_path, line("a")))
    results = ResultFile(tmp_path / "results.jsonl", file)
    results.add("a", {**result("a", status=400), "error": "\ud800"})
    results.close()
    assert ResultFile(results.path, file).done == {"a"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/full")])
def test_a_file_that_could_not_be_read_again_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    make(path)
    for kind in (RequestFile, lambda path: ResultFile(path, ["a"])):
        with pytest.raises(OptionError, match="file: is not a file"):
            kind(path)


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    file = ResultFile(path, ["a"])
    with pytest.raises(OptionError, match="another run writes to it"):
        ResultFile(path, ["a"])
    file.close()
    ResultFile(path, ["a"]).close()


def test_errors_are_counted_over_all_runs(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    file = ResultFile(path, ["a", "b", "c"])
    file.add("a", result("a"))
    file.add("b", result("b", status=400))
    file.close()
    file = ResultFile(path, ["a", "b", "c"])
    file.add("c", {**result("c"), "response": None})
    assert (file.errors, len(file.done)) == (2, 3)
    file.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("my notes\nmore", "line 1: is no result"),
        ("my only note", "line 1: is no result"),
        ('{"id": 3', "line 1: is no result"),
        ('{"custom_id": "a"}\n', "line 1: is no result"),
        (json.dumps(result("z")) + "\n", "line 1: 'z' is not among the requests"),
        (2 * (json.dumps(result("a")) + "\n"), "line 2: 'a' is there twice"),
    ],
)
def test_another_file_is_left_as_it_is(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        ResultFile(path, ["a"])
    assert words in str(caught.value) and path.read_text() == text
