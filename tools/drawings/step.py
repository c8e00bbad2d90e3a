"""A step's graph: what a step of one-token rows launches, and what the host does meanwhile."""

from drawings.canvas import Canvas


def draw() -> Canvas:
    """The device's work from left to right, a layer opened; the host's below, a step ahead."""
    canvas = Canvas("A step's graph", 900, 520)
    canvas.heading(20, 30, "One captured graph: the whole step, from the slots to the slots")
    _device(canvas)
    _layer(canvas)
    _host(canvas)
    return canvas


def _device(canvas: Canvas) -> None:
    canvas.box(20, 44, 860, 108, (), "green")
    parts = (
        (34, 118, ["inputs", "positions, slots", "prepare_decode"]),
        (170, 118, ["embedding", "a row per token", "embed"]),
        (306, 170, ["layers, one by one", "four products and", "attention in each"]),
        (494, 118, ["norm, head", "logits", "a row per request"]),
        (630, 118, ["sampler", "penalties, filters,", "a draw by position"]),
        (766, 100, ["advance", "the token is", "the next input"]),
    )
    for x, width, lines in parts:
        canvas.box(x, 58, width, 80, lines)
    for x, end in ((152, 168), (288, 304), (476, 492), (612, 628), (748, 764)):
        canvas.arrow((x, 98), (end, 98))


def _layer(canvas: Canvas) -> None:
    canvas.heading(20, 190, "A layer: five launches, with the operations around them fused in")
    parts = (
        ["norm, qkv", "one product", "for all heads"],
        ["attention", "q/k norm, rotation, write", "of k and v, all blocks read"],
        ["o, + residual", "back to the row", ""],
        ["norm, gate and up", "one product, silu *", ""],
        ["down, + residual", "back to the row", ""],
    )
    for index, lines in enumerate(parts):
        x = 20 + index * 174
        canvas.box(x, 204, 164, 80, [line for line in lines if line], "orange")
        if index:
            canvas.arrow((x - 10, 244), (x - 1, 244))
    canvas.arrow((391, 138), (391, 172), dashed=True)
    canvas.note(
        20,
        304,
        "engine/model/decoder.py; in steps with prompts "
        "the q/k norm, rotation and cache write are a kernel of their own.",
    )


def _host(canvas: Canvas) -> None:
    canvas.heading(20, 348, "The device never waits: the host is a step ahead")
    for index, name in enumerate(("step 7", "step 8", "step 9")):
        x = 120 + index * 250
        canvas.box(x, 366, 244, 40, [f"device: {name}"], "green")
        canvas.box(x - 60, 430, 110, 40, [f"plan {7 + index}", "and launch"], "blue")
        canvas.arrow((x - 5, 430), (x + 4, 408))
        if index:
            canvas.box(x + 56, 430, 110, 40, [f"apply {6 + index}", "its tokens"], "purple")
            canvas.arrow((x + 2, 406), (x + 60, 429), dashed=True)
    canvas.note(20, 390, "device")
    canvas.note(20, 454, "host")
    canvas.note(
        20,
        496,
        "A plan needs no token of the step before it: it counts a placeholder for each. "
        "An end is noticed a step late, and what was sampled after it is dropped.",
    )
