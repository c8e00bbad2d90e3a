"""A request's life, from the call to the last word."""

from drawings.canvas import Canvas


def draw() -> Canvas:
    """Down on the left: what is asked. Up on the right: what is answered."""
    canvas = Canvas("A request's life", 900, 560)
    canvas.box(
        20, 20, 860, 56, ["a client", "any language: the contract is proto/quire/v1"], "plain"
    )
    _service(canvas)
    _engine(canvas)
    canvas.box(
        20,
        470,
        860,
        70,
        [
            "the device",
            "slots, captured graphs, kernels: what was sampled is the next step's input,",
            "without a round trip to the host",
        ],
        "green",
    )
    return canvas


SERVICE = (
    (
        40,
        "1  admitted",
        "authentication, limits,",
        "could it start in time",
        "rpc/call_admission.py",
    ),
    (
        250,
        "2  checked, rendered",
        "every field is checked;",
        "template, tokenizer",
        "rpc/validation.py",
    ),
    (
        670,
        "7  written",
        "ids become text; stop strings",
        "and partial characters wait",
        "rpc/responses.py",
    ),
)
ENGINE = (
    (
        40,
        "3  queued",
        "fairly among clients,",
        "bounded in number and time",
        "scheduling/waiting_queue.py",
    ),
    (
        250,
        "4  planned",
        "computed chases known tokens;",
        "cached blocks are hit",
        "scheduling/scheduler.py",
    ),
    (460, "5  run", "uploads what changed,", "replays a graph or launches", "runner/runner.py"),
    (
        670,
        "6  applied",
        "tokens in, ends found,",
        "full blocks made known",
        "scheduling/completion.py",
    ),
)
END = (
    "every end is one path",
    "done, cancelled, too late,",
    "failed: always aborted",
    "engine/client/async_engine.py",
)


def _service(canvas: Canvas) -> None:
    canvas.box(20, 116, 860, 128, ["service/   text and ids"], "blue", top=True)
    for x, *lines in SERVICE:
        canvas.box(x, 146, 190, 84, lines)
    canvas.box(460, 146, 190, 84, END, dashed=True)
    canvas.arrow((135, 76), (135, 144), label="Generate")
    canvas.arrow((765, 146), (765, 78), label="deltas")
    canvas.arrow((230, 188), (248, 188))


def _engine(canvas: Canvas) -> None:
    canvas.box(20, 288, 860, 138, ["engine/   only ids, never text"], "orange", top=True)
    for x, *lines in ENGINE:
        canvas.box(x, 320, 190, 88, lines)
    for x in (230, 440, 650):
        canvas.arrow((x, 364), (x + 18, 364))
    canvas.arrow((345, 230), (345, 262), (135, 262), (135, 318))
    canvas.note(150, 280, "a frozen value over the link: another thread, or another process")
    canvas.arrow((765, 320), (765, 232), label="a batch per step")
    canvas.arrow((500, 408), (500, 468))
    canvas.note(506, 463, "launched")
    canvas.arrow((765, 470), (765, 410), label="a step later")
    canvas.arrow((700, 408), (700, 446), (345, 446), (345, 410), dashed=True)
    canvas.note(356, 440, "and again")
