"""Short stories and running prose from a grammar.

Invariant: a story keeps its hero, place and thing from its first sentence to its last.
"""

from __future__ import annotations

import lexicon
from draw import Draw

PLACES = (
    "forest", "village", "valley", "garden", "harbour", "castle", "desert", "island", "library",
    "market", "mountain", "palace", "river", "school", "theatre", "tower", "farm", "city", "cave",
    "meadow",
)  # fmt: skip

NATURES = (
    "brave", "busy", "careful", "cheerful", "clever", "curious", "gentle", "honest", "humble",
    "hungry", "kind", "lazy", "little", "lonely", "merry", "polite", "poor", "proud", "quiet",
    "shy", "sleepy", "small", "tired", "wise", "young", "old",
)  # fmt: skip
SIGHTS = (
    "quiet", "green", "small", "old", "sunny", "famous", "hidden", "lovely", "narrow", "snowy",
    "wide", "faraway", "busy", "strange",
)  # fmt: skip
TROUBLE_WORDS = (
    "dark", "cold", "wild", "sudden", "fierce", "terrible", "long", "grey", "bitter", "great",
)  # fmt: skip
HEROES = (
    *lexicon.ANIMALS, *lexicon.JOBS, "dragon", "robot", "princess", "king", "queen", "knight",
    "wizard", "pirate", "ghost", "giant", "dog", "child", "computer", "star", "engine",
)  # fmt: skip
ANGERS = ("fierce", "proud", "angry", "huge", "rude", "hungry", "grumpy", "sly")

OPENINGS = (
    "Once there was a {adj} {hero} named {name} who lived near a {place}.",
    "Near a {adj2} {place} lived a {adj} {hero} named {name}.",
    "{name} was a {adj} {hero} from a {adj2} {place}.",
    "Long ago, a {adj} {hero} named {name} came to a {place}.",
)
WISHES = (
    "One day {name} lost a {colour} {thing}.",
    "One morning {name} found a {colour} {thing} by the road.",
    "More than anything, {name} wanted a {colour} {thing}.",
    "Every evening {name} looked for a {colour} {thing}.",
)
TROUBLES = (
    "But the night was dark and the way was long.",
    "But a {adj3} storm came over the {place}.",
    "But a {anger} {other} stood in the way.",
    "But nobody in the {place} would help.",
)
HELPS = (
    'Then a {adj4} {friend} said, "I will help you."',
    "Then {name} met a {adj4} {friend}, and they walked on together.",
    "A {adj4} {friend} heard of it and came at once.",
    "{name} asked a {adj4} {friend}, and the {friend} knew what to do.",
)
DEEDS = (
    "They looked under every stone and behind every door.",
    "They crossed the river and climbed the hill.",
    "They waited until the sun came up.",
    "They shared a {fruit} and made a plan.",
)
ENDINGS = (
    "At last {name} held the {colour} {thing} and smiled.",
    "In the end the {colour} {thing} was safe, and {name} went home happy.",
    "From that day on {name} and the {friend} were friends.",
    "That night {name} slept well, with the {colour} {thing} close by.",
)


def _sounds_open(word: str) -> bool:
    return word[:1] in "aeiou" or (word.startswith(("hon", "hour")) and word[:5] != "honey")


def article(text: str) -> str:
    """`text` with "an" where "a" stands before a vowel."""
    words = text.split(" ")
    for at in range(len(words) - 1):
        if words[at] in ("a", "A") and _sounds_open(words[at + 1]):
            words[at] += "n"
    return " ".join(words)


def story(draw: Draw, hero: str | None = None) -> str:
    """A story of five or six sentences about `hero` (an animal or a job; drawn when None)."""
    hero = hero or draw.pick(HEROES)
    other, friend = draw.distinct([a for a in lexicon.ANIMALS if a != hero], 2)
    slots = {
        "hero": hero, "other": other, "friend": friend,
        "name": draw.pick(lexicon.FIRST_NAMES), "place": draw.pick(PLACES),
        "thing": draw.pick(lexicon.THINGS), "colour": draw.pick(lexicon.COLOURS),
        "fruit": draw.pick(lexicon.FRUITS), "adj": draw.pick(NATURES),
        "adj2": draw.pick(SIGHTS), "adj3": draw.pick(TROUBLE_WORDS), "anger": draw.pick(ANGERS),
        "adj4": draw.pick(NATURES),
    }  # fmt: skip
    parts = [OPENINGS, WISHES, TROUBLES, HELPS]
    if draw.chance(0.6):
        parts.append(DEEDS)
    parts.append(ENDINGS)
    return " ".join(article(draw.pick(part).format(**slots)) for part in parts)


def story_turn(draw: Draw) -> tuple[str, str]:
    """ "Tell me a story", with or without a hero."""
    if draw.chance(0.3):
        form = draw.pick(
            (
                "Tell me a story.",
                "Tell me a short story.",
                "Write a short story.",
                "Another story, please.",
            )
        )
        return form, story(draw)
    hero = draw.pick(HEROES)
    form = draw.pick(
        (
            "Tell me a story about {}.",
            "Write a story about {}.",
            "Tell me a short story about {}.",
            "A story about {}, please.",
        )
    )
    return form.format(article("a " + hero)), story(draw, hero)


NOTE_SENTENCES = (
    "{name} {verb} the {adj} {thing} in {city}.",
    "The {job} {verb} a {thing} near the {place}.",
    "It was a {adj} {day} in {month}.",
    "A {colour} {animal} {verb} by the {adj} {place}.",
    "The {adj} {job} and the {animal} {verb} together.",
    "Nobody in {city} {verb} the {colour} {thing}.",
    "After that, {name} {verb} the {fruit} and the {thing}.",
)


def prose(draw: Draw, sentences: int) -> str:
    """`sentences` sentences that belong to no fact: filler between a fact and its question."""
    made = []
    for _ in range(sentences):
        text = draw.pick(NOTE_SENTENCES).format(
            name=draw.pick(lexicon.FIRST_NAMES), verb=draw.pick(lexicon.VERBS_PAST),
            adj=draw.pick(lexicon.ADJECTIVES), thing=draw.pick(lexicon.THINGS),
            city=draw.pick(lexicon.CITIES), job=draw.pick(lexicon.JOBS), place=draw.pick(PLACES),
            day=draw.pick(lexicon.DAYS), month=draw.pick(lexicon.MONTHS),
            colour=draw.pick(lexicon.COLOURS), animal=draw.pick(lexicon.ANIMALS),
            fruit=draw.pick(lexicon.FRUITS),
        )  # fmt: skip
        made.append(article(text))
    return " ".join(made)


def note_turn(draw: Draw, sentences: int) -> tuple[str, str]:
    """A text to read, with a one-word answer."""
    form, answer = draw.pick(
        (("Here is a note.\n{}", "Noted."), ("Read this.\n{}", "I have read it."))
    )
    return form.format(prose(draw, sentences)), answer
