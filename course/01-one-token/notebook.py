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
# # 1. One token by hand
#
# Run the cells from top to bottom. Each does one thing, and shows what came of it.

# %%
import sys

sys.path.insert(0, "..")
import lab
import torch

pocket = lab.pocket()
weights, config = pocket.model.weights, pocket.model.config
config

# %% [markdown]
# ## Text becomes numbers
#
# The model knows a vocabulary of 4,096 words and pieces of words. A text is a list of their numbers.

# %%
tokens = pocket.ask("What is 20 + 22?") + pocket.tokenizer.encode("20 + 22 = ").ids
print(tokens)
[pocket.word(token) for token in tokens]

# %% [markdown]
# ## Numbers become rows
#
# Each number picks a row of a table: 256 numbers that mean this token. From here on a token is a row.

# %%
x = weights["model.embed_tokens.weight"][tokens]
x.shape

# %% [markdown]
# ## A norm
#
# Before each half of a layer the rows are scaled to the same size. The direction says what a token
# means; the length would only get in the way.


# %%
def rms_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.rms_norm_eps) * weight


layer = "model.layers.0"
normed = rms_norm(x, weights[f"{layer}.input_layernorm.weight"])
x.norm(dim=1)[:4], normed.norm(dim=1)[:4]

# %% [markdown]
# ## Queries, keys and values
#
# Three products. A *query* says what a token looks for, a *key* what it offers, a *value* what it
# gives. Each row is cut into heads of 64 numbers: 4 heads of queries over 2 of keys and values.


# %%
def heads(part):
    flat = normed @ weights[f"{layer}.self_attn.{part}_proj.weight"].T
    return flat.view(len(tokens), -1, config.head_dim)


q, k, v = heads("q"), heads("k"), heads("v")
q = rms_norm(q, weights[f"{layer}.self_attn.q_norm.weight"])
k = rms_norm(k, weights[f"{layer}.self_attn.k_norm.weight"])
q.shape, k.shape, v.shape

# %% [markdown]
# ## Places
#
# So far nothing knows who stands where. Queries and keys are *turned*, pair of numbers by pair, by an
# angle that grows with the position. A query then meets a key at an angle that tells their distance.

# %%
speed = 1 / config.rope_theta ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
angle = torch.arange(len(tokens))[:, None, None] * speed


def turn(heads):
    a, b = heads.chunk(2, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


q, k = turn(q), turn(k)

# Only the distance counts: the same two rows, 3 apart, at two places.
row = torch.ones(len(tokens), 1, config.head_dim)
turned = turn(row)[:, 0]
float(turned[3] @ turned[0]), float(turned[13] @ turned[10])

# %% [markdown]
# ## Attention
#
# Every query meets every key that is not later. The better they fit, the more of that token's value
# comes over. This is the one place where a token learns of the others.

# %%
k2, v2 = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
scores = torch.einsum("qhd,khd->hqk", q, k2) / config.head_dim**0.5
later = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
shares = scores.masked_fill(later, -torch.inf).softmax(-1)
found = torch.einsum("hqk,khd->qhd", shares, v2).flatten(1)
x = x + found @ weights[f"{layer}.self_attn.o_proj.weight"].T
shares.sum(-1).min(), shares[0, 0, :3]

# %% [markdown]
# ## And each token for itself
#
# The second half of a layer: two products, one a soft switch for the other, and one back.

# %%
normed = rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"])
gate = torch.nn.functional.silu(normed @ weights[f"{layer}.mlp.gate_proj.weight"].T)
up = normed @ weights[f"{layer}.mlp.up_proj.weight"].T
x = x + (gate * up) @ weights[f"{layer}.mlp.down_proj.weight"].T

# %% [markdown]
# That was a layer. Does the course's engine compute the same? And transformers?

# %%
from mini.model import NoMemory
from transformers import AutoModelForCausalLM

positions = list(range(len(tokens)))
ours = pocket.model.hidden(tokens, positions, NoMemory(), 1)
theirs = AutoModelForCausalLM.from_pretrained(lab.POCKET, dtype=torch.float32)
with torch.inference_mode():
    states = theirs(torch.tensor([tokens]), output_hidden_states=True)
print("mini        ", float((x - ours).abs().max()))
print("transformers", float((x - states.hidden_states[1][0]).abs().max()))
assert torch.allclose(x, ours, atol=1e-4)
assert torch.allclose(x, states.hidden_states[1][0], atol=1e-4)

# %% [markdown]
# ## All six layers, and a word
#
# What comes out of the last layer is compared with every row of the table that we began with. The row
# that fits best is the next token.

# %%
logits = pocket.model.logits(tokens, positions, NoMemory(), [-1])
best = logits[0].softmax(-1).topk(3)
assert torch.allclose(logits[0], states.logits[0, -1], atol=1e-3)
[(pocket.word(int(i)), round(float(p), 4)) for p, i in zip(best.values, best.indices, strict=True)]

# %% [markdown]
# ## A token, and again
#
# The token is put behind the text, and the whole text goes through the model once more. That is all
# there is to generating, and chapter 2 says what is wrong with it.

# %%
from mini.memory import generate_forgetful

answer = generate_forgetful(pocket.model, pocket.ask("What is 20 + 22?"), 20)
said = theirs.generate(
    torch.tensor([pocket.ask("What is 20 + 22?")]), max_new_tokens=20, do_sample=False
)
assert said[0].tolist() == pocket.ask("What is 20 + 22?") + answer
pocket.text(answer)

# %% [markdown]
# ## The picture
#
# Where the last token looks, layer by layer.

# %%

figure = lab.draw("01-one-token", lab.figures("01-one-token"))
