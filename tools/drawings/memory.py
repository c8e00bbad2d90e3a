"""Who owns which memory until when."""

from drawings.canvas import Canvas

LEFT, STEP = 230, 160
ROWS = (
    (
        "a cache block",
        "the tables it is in",
        0,
        3.0,
        "free when the last step\nin flight is applied",
    ),
    ("a slot", "one running request", 0, 3.0, "as its blocks"),
    (
        "pinned upload",
        "the step that filled it",
        0,
        1.0,
        "until its event; a ring, one longer than in flight",
    ),
    ("pinned result", "the step that sampled", 0.6, 1.6, "until it has been read by the host"),
    ("graph's outputs", "the replay", 0.4, 1.4, "until the next replay, in stream order"),
    (
        "pending outputs",
        "the event loop",
        1.6,
        2.6,
        "until its reader takes them; joined meanwhile",
    ),
)


def draw() -> Canvas:
    """A row a kind of memory; bars say from when to when it is somebody's."""
    canvas = Canvas("Who owns memory", 900, 540)
    canvas.heading(20, 30, "Request R is in steps 1 and 2, and ends with the token of step 2")
    for index in range(4):
        x = LEFT + index * STEP
        canvas.box(x, 44, STEP - 8, 36, [f"step {index + 1} runs"], "green")
    for row, (name, owner, begin, end, until) in enumerate(ROWS):
        y = 98 + row * 54
        canvas.box(20, y, 190, 42, [name, owner])
        fill = "orange" if row < 2 else "purple"
        canvas.box(LEFT + begin * STEP, y, (end - begin) * STEP - 8, 42, (), fill)
        canvas.note(LEFT + end * STEP, y + 18, _broken(until))
    canvas.box(
        20,
        436,
        420,
        88,
        [
            "Why blocks outlive their request",
            "Step 3 was launched before R's end was seen, and still",
            "writes for it. Its blocks and slot are not reused before",
            "step 3 has been applied: Completion, SchedulerState.",
        ],
        "blue",
    )
    canvas.box(
        460,
        436,
        420,
        88,
        [
            "A preempted request gives its blocks at once",
            "What a step in flight still writes there is overwritten",
            "in stream order before it is read, and by the epoch",
            "of the row its result is recognised and dropped.",
        ],
        "blue",
    )
    return canvas


def _broken(text: str) -> str:
    """In two lines where it has a semicolon."""
    return text.replace("; ", ";\n")
