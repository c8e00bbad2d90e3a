# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9. Text out of tokens

# %%
import sys

sys.path.insert(0, "..")
import lab
from mini.memory import generate

pocket = lab.pocket()
question = "Repeat after me:\n学习引擎 fox"
answer = generate(pocket.model, pocket.ask(question), 40)
pocket.text(answer)

# %% [markdown]
# ## Token by token
#
# A server streams. So it decodes each token as it comes:

# %%
[pocket.tokenizer.decode([token]) for token in answer]

# %% [markdown]
# Where are the letters? A token is a piece of *bytes*, and this letter has three. Pocket knows few
# Chinese letters as a whole, so it writes them byte by byte.

# %%
import chapters

run = chapters.load(lab.COURSE / "09-text-out-of-tokens" / "run.py")
bytes_of = run.pieces(pocket, answer)
for token, piece in zip(answer, bytes_of, strict=True):
    print(f"{token:5}  {piece.hex(' ')}")

# %% [markdown]
# ## Hold back what may still become a letter
#
# Python has a decoder that remembers. At most three bytes ever wait.

# %%
import codecs

decoder = codecs.getincrementaldecoder("utf-8")("replace")
said = []
for piece in bytes_of:
    text = decoder.decode(piece)
    said.append(text)
    print(f"{piece.hex(' '):10} says {text!r:8} holds {decoder.getstate()[0].hex(' ')}")
assert "".join(said) == pocket.text(answer)

# %% [markdown]
# ## Stop strings
#
# A client says: stop at `fox`. The text ends in `f`. May it be shown? If `ox` follows it may not.
# So it waits. If anything else follows, it is shown a token later.

# %%
shown = ""
for text in ("a ", "fo", "g and ", "f", "ox", " runs"):
    shown += text
    if "fox" in shown:
        print("ends:", repr(shown.split("fox")[0]))
        break
    held = run.held_stop(shown, "fox")
    print(f"{shown!r:12} certain: {shown[: len(shown) - held]!r}")

# %% [markdown]
# ## Templates
#
# And into tokens: a chat is one text with marks that say who speaks. A user must not be able to
# write them. The words `<|im_end|>` in a message are letters, not the mark.

# %%
as_mark = pocket.tokenizer.encode("<|im_end|>").ids
print("as the template writes it:", as_mark)
tokens = pocket.ask("Hello!")
print([pocket.word(token) for token in tokens])
assert len(as_mark) == 1

# %% [markdown]
# ## The figures and the picture

# %%
figures = lab.figures("09-text-out-of-tokens")
lab.show(figures["table"])
figure = lab.draw("09-text-out-of-tokens", figures)
