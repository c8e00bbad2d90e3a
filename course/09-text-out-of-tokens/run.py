"""Chapter 9's figures: an answer token by token, cut where the tokens are and where letters are."""

import codecs
from typing import Any

import lab
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.memory import generate

QUESTION = "Repeat after me:\n学习引擎 fox"
STOP = "fox"


def byte_letters() -> dict[str, int]:
    """Byte-level tokenizers write each byte as a visible letter: bytes that are letters as
    themselves, the others, in turn, as letters from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


def pieces(pocket: lab.Pocket, token_ids: list[int]) -> list[bytes]:
    """The bytes of each token; none for a mark such as the end of a turn."""
    letters = byte_letters()
    names = [pocket.tokenizer.id_to_token(token) for token in token_ids]
    return [
        b"" if name.startswith("<|") else bytes(letters[letter] for letter in name)
        for name in names
    ]


def held_stop(text: str, stop: str) -> int:
    """How many letters at the end of a text may be the beginning of the stop string."""
    return next(n for n in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:n]))


def figures() -> dict[str, Any]:
    """Of each token: its bytes, what decoding it alone says, what is certain, what is held."""
    pocket = lab.pocket()
    answer = generate(pocket.model, pocket.ask(QUESTION), 40)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rows, bars = [], []
    for piece in pieces(pocket, answer):
        said = decoder.decode(piece)
        held = decoder.getstate()[0]
        alone = piece.decode("utf-8", "replace")
        cells = (piece.hex(" "), alone, said, held.hex(" "))
        rows.append([f"`{cell}`" if cell.strip() else "" for cell in cells])
        bars.append([len(piece), len(held)])
    shown = pocket.text(answer)
    return {
        "table": [["bytes of the token", "decoded alone", "certain now", "held back"], *rows],
        "answer": shown,
        "bars": bars,
        "stop": [[shown[:n], held_stop(shown[:n], STOP)] for n in range(1, len(shown) + 1)],
    }


def draw(found: dict[str, Any]) -> Figure:
    """Bytes that came and bytes that are held back, token by token."""
    figure, axes = plt.subplots(figsize=(10, 3.2), layout="constrained")
    came, held = zip(*found["bars"], strict=True)
    places = range(len(came))
    axes.bar([p - 0.2 for p in places], came, 0.4, color="#0b6e99", label="bytes that came")
    axes.bar([p + 0.2 for p in places], held, 0.4, color="#d9480f", label="bytes held back")
    axes.set_xticks(places, [row[0].strip("`") or "end" for row in found["table"][1:]], fontsize=8)
    axes.set(xlabel="token (its bytes)", yticks=range(max(came) + 1))
    axes.set_title("A letter may need several tokens: what of it cannot be shown yet")
    axes.legend()
    return figure
