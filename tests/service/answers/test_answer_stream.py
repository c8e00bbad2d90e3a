"""One index's tokens with a parser behind them: resumed at every token, the same."""

import codecs

import pytest
from support.answer_reference import Whole, joined, read
from support.answers import invent
from support.scripted import TOKENIZER, ids_of

from quire.engine.request import GenerationRequest, SamplingParams
from quire.service.answers.events import Reading, Syntax
from quire.service.answers.parser import OutputParser
from quire.service.rpc.answer_stream import AnswerPiece, AnswerStream
from quire.service.text.text_stream import TextStream

GENERATION = GenerationRequest(1, (5, 6), SamplingParams(max_tokens=1000, seed=3))


def opened(reading: Reading) -> AnswerStream:
    return AnswerStream(TextStream(TOKENIZER.text_pieces), reading, GENERATION, 0)


def told(ids: list[int], reading: Reading) -> Whole:
    """What these ids say, as far as it is certain."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = "".join(decoder.decode(TOKENIZER.text_pieces[i]) for i in ids)
    return joined(OutputParser(reading).feed(text))


def add(whole: Whole, piece: AnswerPiece) -> None:
    whole.reasoning += piece.reasoning
    whole.text += piece.text
    for number, _, name, arguments in piece.calls:
        if number == len(whole.calls):
            whole.calls.append((name, ""))
        known, written = whole.calls[number]
        whole.calls[number] = (known, written + arguments)


@pytest.mark.parametrize("syntax", Syntax)
def test_resumed_at_every_token_the_rest_is_the_same(syntax: Syntax) -> None:
    for seed in range(24):
        answer = invent(seed, syntax, opened=bool(seed % 2))
        ids, expected = ids_of(answer.raw), read(answer.raw, answer.reading)
        for kept in range(len(ids) + 1):
            whole, stream = told(ids[:kept], answer.reading), opened(answer.reading)
            stream.replay(ids[:kept])
            sent = []
            for token_id in ids[kept:]:
                stream.push(token_id)
                if (piece := stream.take()) is not None:
                    sent.append(piece)
            if (piece := stream.end()) is not None:
                sent.append(piece)
            for piece in sent:
                for part in piece.parts(2):
                    add(whole, part)
            assert whole == expected, (answer.raw, kept)
            assert [i for piece in sent for i in piece.ids] == ids[kept:]


@pytest.mark.parametrize("syntax", Syntax)
def test_no_id_leaves_while_its_text_may_yet_be_markup(syntax: Syntax) -> None:
    for seed in range(8):
        answer = invent(seed, syntax, opened=bool(seed % 2))
        stream, parser = opened(answer.reading), OutputParser(answer.reading)
        for token_id in ids_of(answer.raw):
            stream.push(token_id)
            if (piece := stream.take()) is not None:
                parser.feed(b"".join(TOKENIZER.text_pieces[i] for i in piece.ids).decode())
                assert parser.certain, (answer.raw, piece.ids)


def test_text_behind_a_call_is_told_apart_from_text_before_it() -> None:
    """However many tokens waited: else it would depend on time what an answer's order is."""
    call = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    ids = ids_of(f"So:\n{call}\nand {call}{call} fine")
    stream = opened(Reading(Syntax.HERMES))
    for token_id in ids:
        stream.push(token_id)
    pieces = [piece for piece in (stream.take(), stream.end()) if piece is not None]
    parts = [part for piece in pieces for part in piece.parts(1000)]
    assert [(part.text.strip(), len(part.calls)) for part in parts] == [
        *(("So:", 1), ("and", 2), ("fine", 0)),
    ]
    assert [token_id for part in parts for token_id in part.ids] == ids
