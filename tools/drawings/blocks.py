"""Blocks and hashes: two texts with one beginning."""

from drawings.canvas import Canvas

TEXTS = (
    ("request A", ("You are", "a helpful", "fox. What", "is a den?"), "orange", 92),
    ("request B", ("You are", "a helpful", "fox. Why", "so red?"), "purple", 322),
)
WIDTH, GAP, LEFT = 150, 26, 170


def draw() -> Canvas:
    """Texts above and below, the store between them, names over the blocks."""
    canvas = Canvas("Blocks and hashes", 900, 560)
    canvas.heading(20, 30, "A block's hash is the hash of the one before it and of its own tokens")
    for name, words, colour, y in TEXTS:
        _text(canvas, name, words, colour, y)
    _store(canvas)
    _rules(canvas)
    return canvas


def _text(canvas: Canvas, name: str, words: tuple[str, ...], colour: str, y: int) -> None:
    names = ("h1", "h2", "h3" if colour == "orange" else "h3'", "no hash yet")
    canvas.box(20, y, 110, 48, [name, "its block table"])
    canvas.arrow((130, y + 24), (LEFT - 2, y + 24))
    for index, word in enumerate(words):
        x = LEFT + index * (WIDTH + GAP)
        fill = "green" if index < 2 else colour
        canvas.box(x, y, WIDTH, 48, [word, names[index]], fill, dashed=index == 3)
        if index < 3:
            canvas.arrow((x + WIDTH, y + 24), (x + WIDTH + GAP - 2, y + 24))
    canvas.note(
        LEFT, y - 8, "root: H(seed, salt)  ->  h1 = H(root, tokens)  ->  h2 = H(h1, tokens)  -> ..."
    )


def _store(canvas: Canvas) -> None:
    canvas.heading(20, 186, "The cache: blocks are anywhere, a table says where")
    holders = {1: "A and B", 3: "A", 4: "A and B", 6: "B", 2: "A", 7: "B"}
    fills = {1: "green", 4: "green", 3: "orange", 2: "orange", 6: "purple", 7: "purple"}
    inside = {4: "h1", 1: "h2", 3: "h3", 6: "h3'", 2: "written to", 7: "written to", 5: "h9, free"}
    for block in range(8):
        x = 20 + block * 108
        says = "null block" if block == 0 else holders.get(block, "no owner")
        canvas.box(
            x,
            202,
            100,
            64,
            [f"block {block}", inside.get(block, "padding"), says],
            fills.get(block, "plain"),
        )
    canvas.note(
        20,
        284,
        "Blocks 4 and 1 are in two tables (reference count 2), and never written to again.",
    )


def _rules(canvas: Canvas) -> None:
    canvas.box(
        20,
        400,
        420,
        140,
        [
            "A hit",
            "The longest cached prefix is shared, in whole blocks.",
            "The matching first tokens of one more block are copied.",
            "At least one token is left to compute, for the logits.",
            "Tokens are compared too, not only hashes.",
            "scheduling/prefix_cache.py: match, match_partial",
        ],
        "blue",
    )
    canvas.box(
        460,
        400,
        420,
        140,
        [
            "A free block keeps its content",
            "Block 5 has no owner and still holds the tokens of h9.",
            "A request with that prefix can use it. If blocks run",
            "out, the longest unused is taken first, and only then",
            "forgotten. So caching costs no extra memory.",
            "scheduling/block_pool.py: allocate, release",
        ],
        "blue",
    )
