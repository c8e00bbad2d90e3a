"""The course's own modules (`mini`, `lab`, `chapters`) are found as its notebooks find them."""

import sys
from pathlib import Path

COURSE = Path(__file__).resolve().parents[2] / "course"
if str(COURSE) not in sys.path:
    sys.path.append(str(COURSE))
