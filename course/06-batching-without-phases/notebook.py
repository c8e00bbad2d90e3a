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
# # 6. Batching without phases

# %%
import sys

sys.path.insert(0, "..")
import time

import lab

pocket = lab.pocket()

# %% [markdown]
# ## Why together
#
# A step reads all weights. For one row or for ten, they are read once. So ten rows hardly take longer.

# %%
from mini.model import NoMemory


def milliseconds(rows):
    tokens = (pocket.ask("Tell me a story.") * rows)[:rows]
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        pocket.model.logits(tokens, list(range(rows)), NoMemory(), [-1])
        best = min(best, time.process_time() - began)
    return 1000 * best


for rows in (1, 4, 16):
    took = milliseconds(rows)
    print(f"{rows:3} rows: {took:6.2f} ms, {took / rows:5.2f} ms a row")

# %% [markdown]
# ## One rule
#
# Each request has tokens, and a count of how many were computed. The difference is what it misses. A
# step gives each what it misses, until the step is full. Let us watch three requests come one by one.

# %%
from mini.engine import Engine
from mini.scheduler import Request

engine = Engine(pocket.model, budget=16, policy="none")
requests = [
    Request(tuple(pocket.ask(question)), 8)
    for question in ("Count from 1 to 9.", "Tell me a story.", "What is 7 + 8?")
]
for step in range(9):
    if step < 3:
        engine.scheduler.submit(requests[step])
    missing = [request.missing for request in requests[: step + 1]]
    engine.step()
    print(f"step {step}: missed {missing!s:14} rows of the step {engine.steps[-1]}")

# %% [markdown]
# Nobody asked whether a row is a prompt, the rest of a prompt, or a token of an answer. And the
# answers are those of each request alone:

# %%
from mini.memory import generate

while engine.step():
    pass
for request in requests:
    assert request.output == generate(pocket.model, list(request.prompt), 8)
    print(repr(pocket.text(request.output)))

# %% [markdown]
# ## When blocks run out
#
# A pool that is too small for all. Whoever came last gives its blocks to whoever came first, and
# begins again later. Its answer is the same.

# %%
small = Engine(pocket.model, num_blocks=6, block_size=8, policy="none")
prompts = [pocket.ask("Tell me a story."), pocket.ask("Count from 1 to 9.")]
done = small.generate(prompts, 24)
print("preempted:", [request.preemptions for request in done])
assert sum(request.preemptions for request in done) > 0
assert [request.output for request in done] == [
    generate(pocket.model, prompt, 24) for prompt in prompts
]

# %% [markdown]
# ## Count
#
# Eight questions, at most four at once.

# %%
figures = lab.figures("06-batching-without-phases")
lab.show(figures["table"])

# %% [markdown]
# And a long letter that comes while three others talk. A step's budget says how long they wait for it.

# %%
for one in figures["letters"]:
    print(
        f"budget {one['budget']:5}: {one['letter']} tokens of letter read in "
        f"{one['steps_to_read']:3} steps, the largest had {one['largest']} tokens"
    )

# %% [markdown]
# ## The picture

# %%
figure = lab.draw("06-batching-without-phases", figures)
