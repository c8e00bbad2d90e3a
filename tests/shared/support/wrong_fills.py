"""What learners put into the holes of the course's exercises when they believe something wrong."""

from support import wrong_attention_fills, wrong_engine_fills
from support.wrong_fill import WrongFill

FILLS: dict[int, tuple[WrongFill, ...]] = wrong_attention_fills.FILLS | wrong_engine_fills.FILLS
