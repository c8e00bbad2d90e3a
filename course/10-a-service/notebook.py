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
# # 10. A service

# %%
import sys

sys.path.insert(0, "..")
import asyncio

import chapters
import lab

run = chapters.load(lab.COURSE / "10-a-service" / "run.py")
solution = chapters.load(chapters.solution(10))

# %% [markdown]
# ## An engine and a reader
#
# The engine says a token a step. It may not wait for anybody: hundreds of others are in the same
# step. The reader is somewhere behind a slow network. Between them stands a mailbox with room for
# *one* message.


# %%
class Mailbox:
    def __init__(self):
        self.waiting, self.news = None, asyncio.Event()

    def put(self, text, finished):  # never waits
        self.waiting = solution.join(self.waiting, text, finished)
        self.news.set()

    async def take(self):
        await self.news.wait()
        self.news.clear()
        message, self.waiting = self.waiting, None
        return message


# %%
async def stream(words, turns):
    """An engine that says a word a turn of the loop, and a reader that sleeps some turns."""
    box, messages = Mailbox(), []

    async def engine():
        for place, word in enumerate(words):
            box.put(word, place == len(words) - 1)
            await asyncio.sleep(0)

    task = asyncio.create_task(engine())
    finished = False
    while not finished:
        for _ in range(turns):
            await asyncio.sleep(0)
        text, finished = await box.take()
        messages.append(text)
    await task
    return messages


words = [f"{n}, " for n in range(1, 13)]
for turns in (1, 4):
    messages = await stream(words, turns)
    print(f"{len(messages):2} messages:", messages)
    assert "".join(messages) == "".join(words)

# %% [markdown]
# The slow reader has the same text, in fewer and longer messages. Nothing grew, nobody waited.
#
# ## Who leaves
#
# A reader that goes away must take its request with it. Whatever ends a stream (the last word, a
# cancel, a deadline, an error), one `finally` tells the engine. It is the only way to forget
# nothing.

# %%
log = []


async def answer(words):
    try:
        for word in words:
            await asyncio.sleep(0)
            yield word
    finally:
        log.append("the engine is told: abort")


async def impatient():
    stream = answer(words)
    async for word in stream:
        log.append(f"read {word}")
        if word.startswith("2"):
            break
    await stream.aclose()


await impatient()
assert log[-1].startswith("the engine")
log

# %% [markdown]
# ## Too many callers
#
# An answer takes 10 ticks, and a caller waits for 60. What if more come than can be served?

# %%
figures = lab.figures("10-a-service")
for name, doors in figures["doors"].items():
    for load, door in zip(run.LOADS, doors, strict=True):
        print(f"{name:8} load {load}: {door}")
busy = [doors[-1] for doors in figures["doors"].values()]
assert busy[0]["in_time"] < busy[1]["in_time"]

# %% [markdown]
# ## A slow reader, counted

# %%
lab.show(figures["table"])
figure = lab.draw("10-a-service", figures)
