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
# # 11. Many cards and many replicas
#
# Two different things: one model over several cards, and several copies of a model. No card is
# needed to see how either works.

# %%
import sys

sys.path.insert(0, "..")
import lab
import torch
from mini.layers import swiglu

pocket = lab.pocket()
weights = pocket.model.weights
gate, up, down = (
    weights[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")
)
x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
whole = swiglu(x, gate, up, down)

# %% [markdown]
# ## One model over two ranks
#
# The inner numbers of the second half of a layer do not know of one another. So each rank can have
# half of them: half the rows of `gate` and `up`, and the columns of `down` that belong to them.

# %%
half = gate.shape[0] // 2
first = swiglu(x, gate[:half], up[:half], down[:, :half])
second = swiglu(x, gate[half:], up[half:], down[:, half:])
assert torch.allclose(first + second, whole, atol=1e-4)
print("each rank alone is wrong by", round(float((first - whole).abs().max()), 2))
print("their sum is wrong by      ", float((first + second - whole).abs().max()))

# %% [markdown]
# One sum, and all is there. Attention can be shared out in the same way, by heads. So a layer
# needs two sums over all ranks, and nothing else is exchanged.
#
# ## The order of a sum
#
# Numbers with a fraction are rounded after each addition. Another order, another last bit.

# %%
parts = [
    swiglu(x, *part) for part in zip(gate.chunk(4), up.chunk(4), down.chunk(4, 1), strict=True)
]
forward = parts[0] + parts[1] + parts[2] + parts[3]
backward = parts[3] + parts[2] + parts[1] + parts[0]
different = int((forward != backward).sum())
print(f"{different} of {forward.numel()} numbers differ")
assert different > 0

# %% [markdown]
# All ranks draw the next token for themselves. If their sums differ in a bit, one of them may draw
# another token, and from then on they speak of different texts. So the order must be one and the
# same.
#
# ## Many replicas
#
# Copies of a model share nothing. Each has a cache of its own. Which one should a chat go to?

# %%
figures = lab.figures("11-many-cards-many-replicas")
for way, share in figures["found"].items():
    print(f"by {way:10} {share:.0%} of all tokens were found in a cache")

# %% [markdown]
# To send a chat to where its beginning is, somebody could keep a list. Or nobody keeps anything:
# a hash of the beginning says where. But `hash % 4` says something else for nearly everything
# when the fourth replica dies.

# %%
for way, share in figures["moved"].items():
    print(f"{way:11} {share:.0%} of the others' chats go elsewhere when a replica is lost")

# %% [markdown]
# ## What a rank holds
#
# And what it sends for it, for each token of a step.

# %%
lab.show(figures["table"])
figure = lab.draw("11-many-cards-many-replicas", figures)
