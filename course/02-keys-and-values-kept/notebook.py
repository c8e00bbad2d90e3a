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
# # 2. Keys and values kept
#
# The loop of chapter 1 computes everything again for each token. What of it could be kept?

# %%
import sys

sys.path.insert(0, "..")
import lab
import torch

pocket = lab.pocket()
model, config = pocket.model, pocket.model.config
prompt = pocket.ask("Tell me a story.")

# %% [markdown]
# ## Does an old row change?
#
# A row looks back, never ahead. So a token more at the end should change nothing before it. Let us
# see: the rows of 12 tokens, and the same 12 with one more.

# %%
from mini.model import NoMemory


def rows(tokens):
    return model.hidden(tokens, list(range(len(tokens))), NoMemory(), config.num_layers)


short, longer = rows(prompt[:12]), rows(prompt[:13])
difference = float((short - longer[:12]).abs().max())
assert difference < 1e-4
difference

# %% [markdown]
# Nothing changes, but for rounding. All that work is done again for nothing. And of the old rows the
# new token needs two things alone: their keys and their values.
#
# ## A memory
#
# Room for so many tokens, filled from the front. The model writes keys and values as it goes, and
# looks back at all that is there.

# %%
from mini.memory import Kept

memory = Kept(model, capacity=100)
logits = model.logits(prompt, list(range(len(prompt))), memory, [-1])
memory.advance(len(prompt))
print(memory.store.shape, memory.length, "tokens kept")

# %% [markdown]
# Now one token goes through the model, alone. Its position is not 0: it is as many as were before it.

# %%
token = int(logits.argmax())
alone = model.logits([token], [memory.length], memory, [-1])
again = model.logits([*prompt, token], list(range(len(prompt) + 1)), NoMemory(), [-1])
assert torch.allclose(alone, again, atol=1e-3)
pocket.word(token), pocket.word(int(alone.argmax()))

# %% [markdown]
# What if we forget that, and say position 0? The shapes fit, nothing complains, and the logits are
# others.

# %%
wrong = model.logits([token], [0], memory, [-1])
float((wrong - again).abs().max())

# %% [markdown]
# ## The price
#
# Memory. Each token costs a key and a value in each layer and head.

# %%
bytes_per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
assert bytes_per_token == config.kv_bytes_per_token
print(f"{bytes_per_token:,} bytes a token, {bytes_per_token * 2048:,} for Pocket's 2,048")

# %% [markdown]
# ## Measured
#
# Rows are counted; seconds are processor time on this machine, on one thread.

# %%
figures = lab.figures("02-keys-and-values-kept")
lab.show(figures["table"])

# %% [markdown]
# ## The picture

# %%
figure = lab.draw("02-keys-and-values-kept", figures)
