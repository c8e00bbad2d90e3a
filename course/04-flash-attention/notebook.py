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
# # 4. Flash attention

# %%
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # no GPU is needed: Triton runs its programs in Python
sys.path.insert(0, "..")
import lab
import torch

torch.manual_seed(0)
length, dim = 64, 32
q, k, v = (torch.randn(length, dim) for _ in range(3))

# %% [markdown]
# ## The plain way
#
# All scores, then the softmax, then the values: three passes over a square of numbers.

# %%
from mini.tiles import Meter, standard

plain = Meter()
right = standard(q, k, v, plain)
print(f"{plain.between:,} numbers kept in between for {length} tokens, twice {length} x {length}")
assert plain.between == 2 * length * length

# %% [markdown]
# ## A sum that never sees all of itself
#
# A softmax needs the largest score and the sum of all. Do we have to see all scores for that? Let
# us go through one row in pieces. When a larger score comes, what we had shrinks.

# %%
scores = torch.tensor([2.0, 1.0, 5.0, 3.0])
best, total = float("-inf"), 0.0
for piece in (scores[:2], scores[2:]):
    better = max(best, float(piece.max()))
    shrink = float(torch.tensor(best - better).exp())
    total = total * shrink + float((piece - better).exp().sum())
    best = better
    print(f"best {best}, what we had shrinks by {shrink:.4f}, total {total:.4f}")
print("all at once:", float((scores - scores.max()).exp().sum()))
assert abs(total - float((scores - 5).exp().sum())) < 1e-6

# %% [markdown]
# The weighted values shrink in the same way. That is all that is new in flash attention.
#
# ## In tiles

# %%
from mini.tiles import flash

tiled = Meter()
same = flash(q, k, v, 16, tiled)
assert torch.allclose(same, right, atol=1e-5)
print(f"kept in between: {plain.between:,} and {tiled.between:,} numbers")
print(f"moved:           {plain.moved:,} and {tiled.moved:,}")

# %% [markdown]
# ## In Triton
#
# A program for each tile of queries. The first kernel takes all keys at once, the second one tile
# after tile. Triton's interpreter runs them here, slowly, so we look at what they say and not at
# how long they take.

# %%
from mini import kernels

for kernel in (kernels.naive, kernels.flash):
    error = float((kernel(q, k, v) - right).abs().max())
    print(f"{kernel.__name__:6} differs by {error:.1e}")
    assert error < 1e-5

# %% [markdown]
# How much near memory does a program need for its scores? A GPU has about 228 KiB a multiprocessor.

# %%
for tokens in (128, 1024, 4096):
    naive_kib, flash_kib = 128 * tokens * 4 / 1024, 128 * 128 * 4 / 1024
    print(f"{tokens:5} tokens: naive {naive_kib:6,.0f} KiB, flash {flash_kib:.0f} KiB")

# %% [markdown]
# ## Count, for longer texts

# %%
figures = lab.figures("04-flash-attention")
lab.show(figures["table"])

# %% [markdown]
# And what a GPU made of it: these figures were measured on an H200 and are committed with the
# project.

# %%
for row in figures["gpu"]:
    print(f"{row['case']:8} {row['engine']:18} {row['speed'] or row['reason'][:60]}")

# %% [markdown]
# ## The picture

# %%
figure = lab.draw("04-flash-attention", figures)
