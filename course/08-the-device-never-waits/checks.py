"""What exercise 8 is held against: the order in which steps are launched and waited for."""

from types import ModuleType

from checking import attempt, judge

WAITS = (
    "you wait for a step before the next one is launched: the device then idles while the host "
    "looks at tokens and plans"
)
RUNS_AWAY = (
    "you launch all steps before you look at any: a request that ended in the first one is "
    "computed to the end, and nobody who waits comes in"
)
LAST_FORGOTTEN = "you never wait for the last step: its tokens are lost"
WRONG_ONE = (
    "you wait for the step that you have just launched, and never for the one before it: that is "
    "waiting with one step more"
)

Log = list[str]


def _log(steps: int, kind: str) -> Log:
    """What happens in which order: rightly, or as a misconception would have it."""
    launches, waits = ([f"{word} {n}" for n in range(steps)] for word in ("launch", "wait"))
    if kind == "waits":
        return [word for pair in zip(launches, waits, strict=True) for word in pair]
    if kind == "runs away":
        return launches + waits
    if kind == "wrong one":
        return launches[:1] + [w for p in zip(launches[1:], waits[1:], strict=True) for w in p]
    log = launches[:1]
    for launch, wait in zip(launches[1:], waits, strict=False):
        log += [launch, wait]
    return log + (waits[-1:] if kind == "right" else [])


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    kinds = {
        "waits": WAITS,
        "runs away": RUNS_AWAY,
        "last forgotten": LAST_FORGOTTEN,
        "wrong one": WRONG_ONE,
    }
    for steps in (4, 2, 1, 0):
        log: Log = []

        def launch(step: int, log: Log = log) -> None:
            log.append(f"launch {step}")

        def wait(step: int, log: Log = log) -> None:
            log.append(f"wait {step}")

        attempt(exercise.drive, steps, launch, wait)
        suspects = [(_log(steps, kind), word) for kind, word in kinds.items()]
        judge(log, _log(steps, "right"), suspects, f"{steps} steps")
