"""One process or two: the same loop behind two links."""

from drawings.canvas import Canvas

BELOW = (
    (
        "Frames",
        "marshalled tuples over a socket",
        "that nobody else can reach",
        "engine/client/wire.py",
    ),
    (
        "A heartbeat",
        "eight bytes of shared memory: the",
        "watchdog sees a step that hangs",
        "engine/loop/heartbeat.py",
    ),
    (
        "Outputs before death",
        "what a dying engine has sent is",
        "delivered before its streams fail",
        "engine/client/child.py",
    ),
)


def draw() -> Canvas:
    """The thread above, the process below."""
    canvas = Canvas("One process or two", 900, 520)
    canvas.heading(20, 30, "One process: the engine's loop on a thread (a CPU)")
    canvas.box(20, 44, 860, 150, ["one process, one interpreter, one lock"], "plain", top=True)
    _pair(canvas, 76, ("commands", "batches"), "client/in_thread.py")
    canvas.note(40, 188, "Commands wait behind a lock; batches come by call_soon_threadsafe.")
    canvas.heading(20, 236, "Two processes: a GPU, whose steps must not wait for the event loop")
    canvas.box(20, 250, 390, 150, ["the server: needs no torch"], "plain", top=True)
    canvas.box(490, 250, 390, 150, ["the child: its own interpreter"], "plain", top=True)
    _pair(canvas, 282, ("frames", "frames"), "client/in_process.py")
    for index, lines in enumerate(BELOW):
        canvas.box(20 + 290 * index, 424, 280, 80, lines, "blue")
    return canvas


def _pair(canvas: Canvas, y: int, labels: tuple[str, str], link: str) -> None:
    canvas.box(
        40,
        y,
        350,
        96,
        ["event loop", "gRPC, HTTP, text, streams", "the Pacer merges outputs", f"engine/{link}"],
        "blue",
    )
    canvas.box(
        510,
        y,
        350,
        96,
        [
            "engine's loop",
            "inbox, plan, run, apply, outlet",
            "does not know the other side",
            "engine/loop/loop.py",
        ],
        "orange",
    )
    canvas.arrow((390, y + 32), (508, y + 32), label=labels[0])
    canvas.arrow((510, y + 72), (392, y + 72), label=labels[1])
