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
# # 8. The device never waits

# %%
import sys

sys.path.insert(0, "..")
import chapters
import lab
from mini.memory import generate

pocket = lab.pocket()
folder = lab.COURSE / "08-the-device-never-waits"
ahead = chapters.load(folder / "ahead.py")
run = chapters.load(folder / "run.py")

# %% [markdown]
# ## A stream
#
# A GPU does its work in order, and whoever launches does not wait for it. Here a thread stands
# for it. A launch returns at once, with a promise.

# %%
prompt = pocket.ask("What is 20 + 22?")
device = ahead.Device(pocket.model, [prompt], 10)
first = device.launch([0], [prompt])
second = device.launch([0])  # its token is not known yet, and nobody here needs to know it
third = device.launch([0])
print(
    "launched three steps; they say:", *(pocket.word(f.result()[0]) for f in (first, second, third))
)
device.stream.shutdown()

# %% [markdown]
# How can the second step be launched before the first one's token is known? The token stays on the
# device: `device.last`. The step reads it there, when its turn has come. The host plans with a
# *placeholder*: it knows that there will be a token, and where.
#
# ## The same answers, a step ahead

# %%
questions = run.QUESTIONS
prompts = [pocket.ask(question) for question in questions]
answers, wasted = ahead.generate_ahead(pocket.model, prompts, 100)
for prompt, answer in zip(prompts, answers, strict=True):
    assert answer == generate(pocket.model, prompt, 100)
    print(pocket.text(answer)[:60])
print(f"{sum(map(len, answers))} tokens, and {wasted} drawn for nothing")

# %% [markdown]
# An end is seen a step late. Then one token of that request has been drawn for nothing, and is
# dropped. That is the price.
#
# ## On a clock
#
# To see what is won, let us give the host and the device a clock of ticks. Planning and taking in
# cost 3, a launch 1. A large model takes 12 ticks a step, a small one 5, a tiny one 2.

# %%
figures = lab.figures("08-the-device-never-waits")
lab.show(figures["table"])

# %% [markdown]
# The tiny model is still waited for: its steps are shorter than the host's work. What then? Make
# the host's work smaller. A step of Qwen3-0.6B has so many launches:

# %%
print(figures["launches"], "launches, or one replay of a captured graph")

# %% [markdown]
# ## The picture

# %%
figure = lab.draw("08-the-device-never-waits", figures)
