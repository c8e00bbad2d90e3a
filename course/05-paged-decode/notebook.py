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
# # 5. Paged decode attention

# %%
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, "..")
import lab
import torch

torch.manual_seed(0)
size, heads, dim = 4, 2, 16
store = torch.randn(2, 48, heads, dim)  # keys and values of 12 blocks
keys, values = store
tables, contexts = [[7, 2], [9, 4, 11, 0], [5]], [6, 14, 3]
q = torch.randn(3, 2 * heads, dim)

# %% [markdown]
# ## Row by row
#
# Three requests, one new token each. Look up a row's slots, take its keys and values, attend. It is
# plainly right, and it is a loop: each round starts a handful of small operations.

# %%
from mini.paged import by_row

right = by_row(q, keys, values, tables, contexts, size)
right.shape

# %% [markdown]
# ## All at once
#
# Tables of one length make a tensor. The short ones are filled up with 0. Then every row has as
# many slots as the longest, and those behind its context must weigh nothing.

# %%
longest = max(map(len, tables))
padded = torch.tensor([table + [0] * (longest - len(table)) for table in tables])
slots = (padded[:, :, None] * size + torch.arange(size)).flatten(1)
behind = torch.arange(slots.shape[1]) >= torch.tensor(contexts)[:, None]
print(padded)
print(slots[0].tolist(), "of which", int((~behind[0]).sum()), "are row 0's")

# %%
from mini.paged import vectorised

assert torch.allclose(vectorised(q, keys, values, tables, contexts, size), right, atol=1e-5)

# %% [markdown]
# What if the padding were not masked? Block 0 is another request's. Row 0 would answer from its
# words.

# %%
from mini.layers import attention

leaked = attention(q[:1], keys[slots[0]], values[slots[0]])
print("row 0 would be off by", round(float((leaked - right[:1]).abs().max()), 3))
assert not torch.allclose(leaked, right[:1], atol=1e-3)

# %% [markdown]
# ## In Triton
#
# A program for each row and head goes through *its own* blocks, with the three numbers of chapter
# 4. Nothing is padded, nothing is copied: pages cost one line, the look-up of a block.

# %%
import chapters

kernel = chapters.load(lab.COURSE / "05-paged-decode" / "kernel.py")
same = kernel.decode(q, keys, values, padded, torch.tensor(contexts), size)
print("differs by", float((same - right).abs().max()))
assert torch.allclose(same, right, atol=1e-5)

# %% [markdown]
# ## What a step reads
#
# Weights once, whatever the number of rows. Keys and values for each row anew.

# %%
figures = lab.figures("05-paged-decode")
for rows, (weights, kept) in figures["step_bytes"].items():
    print(
        f"{rows:>3} rows: {weights / 2**20:5.1f} MiB of weights, {kept / 2**20:5.1f} of the cache"
    )

# %% [markdown]
# And what padding reads for nothing: four rows of the same length, and four of very different ones.

# %%
for name in ("equal", "spread"):
    one = figures[name]
    print(f"{name:6}: {one['needed']:,} slots needed, {one['padded']:,} read")

# %% [markdown]
# ## Measured
#
# Processor time on this machine, on one thread.

# %%
lab.show(figures["table"])

# %% [markdown]
# ## The picture

# %%
figure = lab.draw("05-paged-decode", figures)
