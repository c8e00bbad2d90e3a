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
# # 12. Chance

# %%
import sys

sys.path.insert(0, "..")
import chapters
import lab
import torch
from mini.chance import Chance, keep, noise
from mini.engine import Engine
from mini.scheduler import Request

run = chapters.load(lab.COURSE / "12-chance" / "run.py")
pocket = lab.pocket()
logits = run.first_scores(pocket)
logits.shape

# %% [markdown]
# ## Scores become chances
#
# The first word of a story. Three are likely, and thousands are not.

# %%
chances = logits.softmax(0)
for token in chances.topk(8).indices.tolist():
    print(f"{pocket.word(token)!r:8} {float(chances[token]):.3f}")
print("all but the three likeliest:", round(1 - float(chances.topk(3).values.sum()), 3))

# %% [markdown]
# ## Temperature
#
# Scores are divided by it, before the softmax.

# %%
for temperature in (0.2, 0.5, 1.0, 2.0):
    best = (logits / temperature).softmax(0).topk(3).values
    print(f"temperature {temperature}: {[round(float(x), 2) for x in best]}")

# %% [markdown]
# ## A cut
#
# Sort, add up, and stop behind the token that crosses p.

# %%
found, order = chances.sort(descending=True)
before = found.cumsum(0) - found  # what the likelier ones have together
left = order[before < 0.7]
print([pocket.word(int(token)) for token in left], round(float(chances[left].sum()), 3))
kept = keep(logits, top_k=0, top_p=0.7)
assert (kept > -torch.inf).sum() == len(left)

# %% [markdown]
# ## Noise, and then the largest
#
# No sums, no sorting: add a number to each score, and take the best. Count who wins.

# %%
draws = torch.stack([noise(seed=1, place=place, size=len(logits)) for place in range(500)])
winners = (logits + draws).argmax(1)
for token in chances.topk(3).indices.tolist():
    share = float((winners == token).float().mean())
    print(f"{pocket.word(token)!r:7} won {share:.3f}, its chance is {float(chances[token]):.3f}")

# %% [markdown]
# ## The same seed, the same story
#
# Beside others, and alone.

# %%
prompt = tuple(pocket.ask("Tell me a story."))


def told(seeds: list[int]) -> list[str]:
    requests = [Request(prompt, 14, chance=Chance(0.8, top_p=0.9, seed=seed)) for seed in seeds]
    engine = Engine(pocket.model)
    for request in requests:
        engine.scheduler.submit(request)
    while engine.step():
        pass
    return [pocket.text(request.output) for request in requests]


together = told([1, 2, 3])
print("\n".join(together))
assert told([2]) == together[1:2]

# %% [markdown]
# ## The figures and the picture

# %%
figures = lab.figures("12-chance")
lab.show(figures["table"])
print("stories that change in company:", figures["changed"])
figure = lab.draw("12-chance", figures)
