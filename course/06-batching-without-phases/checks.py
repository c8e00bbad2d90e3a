"""What exercise 6 is held against: steps with room and without, talkers and prompts mixed."""

from types import ModuleType

from checking import attempt, judge

WHOLE_ONLY = (
    "you take a prompt whole or not at all: one that is longer than a step would wait for ever; "
    "give it what room there is, the rest comes later"
)
BUDGET_EACH = (
    "your budget is one of each request: it is the step's, and what one request has taken the "
    "next one cannot have"
)
ONE_EACH = "you give every request one token: a prompt has many, and they can go through at once"
EQUAL = (
    "you share the room equally: those that talk miss one token and leave the rest of their "
    "share unused, while a prompt could have had it"
)
STOPS = (
    "you end the step at the first request that does not fit whole: there is room left, and it "
    "gets what there is"
)


def _served(missing: list[int], budget: int) -> list[int]:
    shares = []
    for lacking in missing:
        shares.append(min(lacking, budget))
        budget -= shares[-1]
    return shares


def _whole(missing: list[int], budget: int, *, stops: bool) -> list[int]:
    shares, ended = [], False
    for lacking in missing:
        fits = lacking <= budget and not ended
        ended = ended or (stops and not fits)
        shares.append(lacking if fits else 0)
        budget -= shares[-1]
    return shares


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    for missing, budget in (
        ([1, 1, 30, 1], 16),
        ([40, 1, 0, 12], 64),
        ([1, 1, 1], 2),
        ([0, 0], 8),
        ([], 8),
        ([100], 7),
    ):
        suspects = [
            (_whole(missing, budget, stops=True), STOPS),
            (_whole(missing, budget, stops=False), WHOLE_ONLY),
            ([min(lacking, budget) for lacking in missing], BUDGET_EACH),
            ([min(lacking, 1) for lacking in missing], ONE_EACH),
            (_served([min(lacking, 1) for lacking in missing], budget), ONE_EACH),
            ([min(n, budget // len(missing)) for n in missing], EQUAL),
        ]
        case = f"missing {missing}, room for {budget}"
        got = attempt(exercise.share_out, list(missing), budget)
        judge(got, _served(missing, budget), suspects, case)
