"""Look at an exercise: `python course/check.py 3`, or `3 FILE` for one that lies elsewhere.

Exit code 0 if it is right; 1 with a line that says what it seems to believe; 2 for a usage error.
"""

import sys
from pathlib import Path

import chapters
import lab  # says what is missing, if something is
from checking import NotYet


def look_at(number: int, exercise: Path) -> None:
    """Raises NotYet unless the exercise of this chapter is right in this file."""
    checks = chapters.load(chapters.folder(number) / "checks.py")
    checks.check(chapters.load(exercise))


def main(words: list[str]) -> int:
    if not words or not words[0].isdecimal():
        print("check: which chapter? type: python course/check.py NUMBER [FILE]", file=sys.stderr)
        return 2
    try:
        number = int(words[0])
        exercise = Path(words[1]) if len(words) > 1 else chapters.folder(number) / "exercise.py"
        source = exercise.read_text(encoding="utf-8")
        compile(source, str(exercise), "exec")
    except (ValueError, OSError, SyntaxError) as error:
        print(f"check: {error}; type: python course/check.py NUMBER [FILE]", file=sys.stderr)
        return 2
    try:
        look_at(number, exercise)
    except NotYet as word:
        print(f"chapter {number}: not yet: {word}")
        return 1
    print(f"chapter {number}: right")
    return 0


if __name__ == "__main__":
    lab.need("torch")
    sys.exit(main(sys.argv[1:]))
