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
# # 7. Prefixes found again
#
# Blocks that nobody holds any more still contain keys and values. Whoever comes with the same
# beginning can have them.

# %%
import sys

sys.path.insert(0, "..")
import lab

pocket = lab.pocket()

# %% [markdown]
# ## The name of a block
#
# What the keys of a block contain depends on its tokens *and on all tokens before them*: each layer
# has looked back. So a block's name is made from its tokens and from the name of the block before it.

# %%
from mini.prefix import block_hashes

text = pocket.ask("What is a block?", "A block is a fixed number of token slots.", "Thank you.")
other = pocket.ask("Hello!", "Hello! How can I help you?", "Thank you.")
for tokens in (text, other):
    print(len(tokens), "tokens:", *(name.hex()[:8] for name in block_hashes(tokens, 16)))

# %% [markdown]
# One token more or less at the beginning, and every name is another one. That is what we want: the
# keys are others too.

# %%
shifted = text[1:]
print(*(name.hex()[:8] for name in block_hashes(shifted, 16)))
assert not set(block_hashes(text, 16)) & set(block_hashes(shifted, 16))

# %% [markdown]
# ## A pool that remembers
#
# A block that is given back goes to the free list, *with its name*. It can be taken for new content at
# any time; until then it can be found.

# %%
from mini.prefix import RememberingPool

pool = RememberingPool(num_blocks=6, block_size=16)
table = []
pool.grow(table, len(text))
pool.remember(table, text)
pool.give_back(table)
print("free:", pool.num_free, " found again:", pool.find([*text, 7]))

# %% [markdown]
# A text that is known to its last token leaves its last block out. One token has to go through the
# model, or nothing says what comes next.

# %%
exact = text[:32]
print("known blocks of 32 tokens:", pool.find(exact), " of 33:", pool.find(text[:33]))

# %% [markdown]
# ## The same answer, sooner
#
# The engine asks the pool when a request comes in, and begins behind what was found.

# %%
from mini.engine import Engine
from mini.memory import generate

engine = Engine(pocket.model)
first = engine.generate([text], 20)[0]
again = engine.generate([text], 20)[0]
assert first.output == again.output == generate(pocket.model, text, 20)
print(f"found: {first.cached}, then {again.cached} of {len(text)} tokens")

# %% [markdown]
# ## A chat
#
# Each turn of a chat sends everything that was said before. Without a cache all of it is computed
# again, every time.

# %%
figures = lab.figures("07-prefixes")
lab.show(figures["table"])
assert sum(figures["without"]) == figures["table"][-1][1]

# %% [markdown]
# ## Who has to go
#
# When the pool is full, some block is forgotten. Eighty texts come, with five beginnings; one of the
# five is needed every second time.

# %%
print("blocks", *(f"{size:>5}" for size in figures["pools"]))
for policy, shares in figures["shares"].items():
    print(f"{policy:6}", *(f"{share:5.0%}" for share in shares))
assert figures["shares"]["lru"][3] > figures["shares"]["fifo"][3]

# %% [markdown]
# ## Windows
#
# Some models let a token look back a certain way only. Then a hit needs the last few blocks alone.

# %%
print("tokens, blocks for a hit: full, window of 128")
for line in figures["windows"]:
    print(*(f"{cell:>8,}" for cell in line))

# %% [markdown]
# ## The picture

# %%
figure = lab.draw("07-prefixes", figures)
