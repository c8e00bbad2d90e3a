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
# # 3. Pages
#
# Keys and values of many requests, in one store that is cut into equal blocks.

# %%
import sys

sys.path.insert(0, "..")
import lab
import torch

pocket = lab.pocket()
config = pocket.model.config
print(f"{config.kv_bytes_per_token:,} bytes for each token that is remembered")

# %% [markdown]
# ## The trouble with reserving
#
# Nobody knows how long an answer will be. Whoever keeps a request's keys in one piece has to
# reserve for the longest. This is what three questions would take if each may get 200 tokens.

# %%
from mini.memory import generate

for question in ("What is 20 + 22?", "Tell me a story.", "Thank you."):
    prompt = pocket.ask(question)
    answer = generate(pocket.model, prompt, 200)
    needed, reserved = len(prompt) + len(answer), len(prompt) + 200
    print(f"{question:18} reserved {reserved}, needed {needed}: {1 - needed / reserved:.0%} empty")

# %% [markdown]
# ## Blocks instead
#
# The pool knows which blocks are free, and nothing else. A request holds a *table*: its blocks,
# in the order of its tokens. It grows by a block when the last one is full.

# %%
from mini.pages import BlockPool

pool = BlockPool(num_blocks=8, block_size=4)
fox, crow = [], []
pool.grow(fox, 6)  # six tokens: two blocks
pool.grow(crow, 3)
pool.grow(fox, 9)  # the ninth token needs a third block, and the next free one is not beside
print("fox ", fox)
print("crow", crow)
print("free", pool.free)

# %% [markdown]
# ## Where a token lies
#
# Token `p` is in block `table[p // 4]`, at place `p % 4`. That is the whole trick.

# %%
for position in range(9):
    block, place = fox[position // 4], position % 4
    print(f"token {position}: block {block}, place {place}, slot {block * 4 + place}")

# %% [markdown]
# A request that ends gives its blocks back. Any other can use them at once: all blocks are equal,
# so no gap is ever too small.

# %%
pool.give_back(crow)
owl = []
pool.grow(owl, 13)
print("owl ", owl, " free", pool.free)

# %% [markdown]
# ## The same answers
#
# The model is handed another memory. It does not notice. Attention reads a request's slots in the
# order of its table and gets the same keys and values as before.

# %%
from mini.memory import Kept
from mini.pages import Paged, PagedStore, Row

prompt = pocket.ask("Tell me a story.")
places = list(range(len(prompt)))
store = PagedStore(config, num_blocks=16, block_size=4)
row = Row(table=[9, 2, 14, 5], start=0, count=len(prompt))
in_pages = pocket.model.logits(prompt, places, Paged(store, [row]), [-1])
in_one_piece = pocket.model.logits(prompt, places, Kept(pocket.model, 64), [-1])
assert torch.equal(in_pages, in_one_piece)
print("equal, bit for bit")

# %% [markdown]
# ## Count
#
# Twelve questions come at once. All share 1,024 slots. A block of 256 tokens is long enough for the
# longest request: that is what reserving would be.

# %%
figures = lab.figures("03-pages")
lab.show(figures["table"])
assert figures["preemptions"] == 0

# %% [markdown]
# ## The picture
#
# On the right, the numbers are requests. No two blocks of one need lie side by side.

# %%
figure = lab.draw("03-pages", figures)
