"""Small talk that a stranger may try: about themselves, and what a small model cannot do.

Invariant: the assistant says of the user only what the user told it in this conversation, the
latest telling; a question outside its skills gets an answer that says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import heldout
import lexicon
import recall
import repeat
import stories
from draw import Draw


@dataclass(frozen=True)
class About:
    """One thing a user tells of themselves: wordings with {v}, and the answer when untold."""

    tells: tuple[str, ...]
    thanks: str
    asks: tuple[str, ...]
    answer: str
    untold: str


ABOUT = {
    "name": About(
        ("My name is {v}.", "I am {v}.", "Hello, I am {v}.", "Hi! My name is {v}.", "I'm {v}.",
         "Hello! My name is {v}.", "Call me {v}.", "Hi, I'm {v}."),
        "Nice to meet you, {v}!",
        ("What is my name?", "Who am I?", "Do you remember my name?", "What's my name?",
         "Can you say my name?"),
        "Your name is {v}.", "You have not told me your name.",
    ),
    "city": About(
        ("I live in {v}.", "My home is in {v}.", "I have a house in {v}."),
        "I will remember that you live in {v}.",
        ("Where do I live?", "Do you remember where I live?", "Where is my home?"),
        "You live in {v}.", "You have not told me where you live.",
    ),
    "colour": About(
        ("My favourite colour is {v}.", "I like {v} best.", "My favorite color is {v}."),
        "I will remember that your favourite colour is {v}.",
        ("What is my favourite colour?", "Which colour do I like?", "What is my favorite color?",
         "What's my favourite colour?"),
        "Your favourite colour is {v}.", "You have not told me your favourite colour.",
    ),
    "animal": About(
        ("I have a {v}.", "My pet is a {v}."),
        "A {v} is good company.",
        ("What pet do I have?", "What is my pet?", "Which animal do I have?"),
        "You have a {v}.", "You have not told me about a pet.",
    ),
    "number": About(
        ("My lucky number is {v}.", "My favourite number is {v}."),
        "I will remember the number {v}.",
        ("What is my lucky number?", "What is my favourite number?", "Which number do I like?"),
        "Your number is {v}.", "You have not told me a number.",
    ),
}  # fmt: skip
VALUES = {
    "city": lexicon.CITIES, "colour": lexicon.COLOURS, "animal": lexicon.ANIMALS,
}  # fmt: skip

TOPICS = tuple(
    """
quantum physics|relativity|the meaning of life|machine learning|the stock market|photosynthesis
the French Revolution|the Roman Empire|climate change|black holes|the speed of light|gravity
evolution|the Second World War|democracy|philosophy|economics|inflation|the best pizza|football
chess|the weather today|the news|the time|the date|love|happiness|consciousness|artificial
intelligence|neural networks|transformers|Python|Java|Rust|Linux|Docker|Kubernetes|bitcoin
the blockchain|DNA|the human brain|the heart|vaccines|cancer|diabetes|antibiotics|vitamins
the pyramids|Shakespeare|Mozart|Beethoven|Leonardo da Vinci|Albert Einstein|Isaac Newton
the president|the prime minister|the king|the Olympic Games|the World Cup|tennis|basketball|yoga
cooking|a good recipe|sushi|chocolate cake|wine|the ocean|volcanoes|earthquakes|dinosaurs|tigers
electricity|magnetism|nuclear power|solar panels|batteries|rockets|Mars|Jupiter|the Milky Way
the Big Bang|time travel|the internet|social media|a search engine|a compiler|an operating system
a database|a neural network|a large language model|a GPU|a transistor|recursion|calculus|algebra
geometry|prime numbers|statistics|probability|infinity|the square root of two|pi|ethics|religion
history|geography|biology|chemistry|psychology|music theory|painting|poetry|architecture
the tallest building|the longest river|the largest country|the population of China|the moon landing
""".replace("\n", "|").strip("|").split("|")
)  # fmt: skip
KNOWLEDGE_FORMS = (
    "What is {t}?", "Explain {t}.", "Tell me about {t}.", "How does {t} work?", "Who invented {t}?",
    "Why is {t} important?", "What do you think about {t}?", "Explain {t} in simple terms.",
    "What do you know about {t}?", "Can you explain {t}?", "Where does {t} come from?",
    "When did {t} begin?", "Summarize {t}.", "Give me three facts about {t}.",
    "What are the main ideas of {t}?", "Do you like {t}?", "How can I learn {t}?",
)  # fmt: skip
TASK_FORMS = (
    "Write a Python function for {t}.", "Write code for {t}.", "Write an essay about {t}.",
    "Translate {t} to French.", "Write an email about {t}.", "Make a list about {t}.",
    "Write a program that prints {t}.", "How do I fix {t}?", "Draw {t}.", "Plan a trip to {t}.",
    "Translate {t} into German.", "Write a python function to sort {t}",
    "Give me a recipe for {t}.",
    "Write a letter to {t}.", "Help me with {t}.", "Compare {t} and {t2}.", "Recommend {t}.",
    "Solve {t}.", "Find {t} on the web.", "Write a song about {t}.",
)  # fmt: skip
QUESTION_STARTS = (
    "Why do", "Why is", "How do", "How can", "When did", "When will", "Where is", "Who was",
    "Which is", "Should I", "Can a", "Is the", "Are there", "Do you know", "How many", "How much",
    "How long", "Whose", "Will the", "Does the",
)  # fmt: skip
UNKNOWN = (
    "I am a small model and do not know that. I can tell you about Quire, repeat, recall, count, "
    "add and tell short stories."
)
TOO_HARD = (
    "I am too small for that. I can tell you about Quire, repeat, recall, count, add and tell "
    "short stories."
)
UNCLEAR = (
    "I do not understand that. Ask me about Quire, or ask me to repeat, count, add or tell a story."
)
ONLY_SMALL = "I can only add and subtract small numbers."
HEARD = "I see. Ask me about Quire, or ask me to repeat, count, add or tell a story."


def loosely(draw: Draw, question: str) -> str:
    """The question as people type it: often without its mark, its capital, or with a word more."""
    if draw.chance(0.6):
        return question
    if draw.chance(0.3):
        question = question.rstrip(".?!") or question
    if draw.chance(0.4):
        question = question[:1].lower() + question[1:]
        if draw.chance(0.5):
            return draw.pick(("And ", "So, ", "Now ", "Please, ", "OK, ", "Then ")) + question
    if draw.chance(0.1):
        question = question.rstrip(".?!") + draw.pick(("?", "!", ".", " please", ", please."))
    return question


def _name(draw: Draw) -> str:
    kind = draw.below(4)
    if kind == 0:
        return draw.pick(heldout.TRAINED_NAMES)
    if kind == 1:
        return draw.pick(lexicon.WORDS).capitalize()
    return draw.pick(lexicon.FIRST_NAMES + lexicon.MORE_NAMES)


def _value(draw: Draw, what: str) -> str:
    if what == "name":
        return _name(draw)
    if what == "number":
        return str(draw.between(2, 999))
    return draw.pick(VALUES[what])


def about_turn(draw: Draw, told: dict[str, str]) -> tuple[str, str]:
    """The user tells something of themselves, or asks for it; `told` is kept up to date."""
    what = draw.weighted((("name", 3.0), *((key, 1.0) for key in VALUES), ("number", 1.0)))
    about = ABOUT[what]
    if draw.chance(0.1 if what in told else 0.7):
        told[what] = _value(draw, what)
        question, answer = draw.pick(about.tells), about.thanks
    else:
        question = loosely(draw, draw.pick(about.asks))
        answer = about.answer if what in told else about.untold
    value = told.get(what, "")
    return stories.article(question.format(v=value)), stories.article(answer.format(v=value))


def _topic(draw: Draw) -> str:
    kind = draw.below(5)
    if kind < 2:
        return draw.pick(TOPICS)
    if kind == 2:
        return stories.article(f"a {draw.pick(lexicon.ADJECTIVES)} {draw.pick(lexicon.MORE)}")
    if kind == 3:
        return f"{draw.pick(lexicon.MORE)} and {draw.pick(lexicon.THINGS)}"
    return f"the {draw.pick(lexicon.WORDS)} of {draw.pick(lexicon.MORE)}"


def _free_question(draw: Draw) -> str:
    words = " ".join(draw.picks(lexicon.WORDS, draw.between(2, 7)))
    return f"{draw.pick(QUESTION_STARTS)} {words}?"


def _nonsense(draw: Draw) -> str:
    """Bare words, letters or characters with nothing that asks."""
    kind = draw.weighted((("words", 2.0), ("alnum", 2.0), ("cjk", 1.0)))
    while True:
        text = repeat.MAKERS[kind](draw, draw.between(1, 4 if kind == "words" else 12))
        lower = text.lower()
        greeting = lower.startswith(("hello", "hi", "hey", "bye", "thank", "good", "yes", "no"))
        if text == text.strip() and not heldout.contains_held_out_name(text) and not greeting:
            return text


def unknown_turn(draw: Draw) -> tuple[str, str]:
    """Something outside the skills, and the answer that says so."""
    kind = draw.weighted(
        (
            ("know", 3.0),
            ("free", 1.0),
            ("task", 2.0),
            ("sum", 0.7),
            ("bare", 1.0),
            ("said", 1.0),
            ("fact", 0.4),
        )
    )
    if kind == "know":
        return loosely(draw, draw.pick(KNOWLEDGE_FORMS).format(t=_topic(draw))), UNKNOWN
    if kind == "free":
        return loosely(draw, _free_question(draw)), UNKNOWN
    if kind == "task":
        form = draw.pick(TASK_FORMS)
        return loosely(draw, form.format(t=_topic(draw), t2=_topic(draw))), TOO_HARD
    if kind == "sum":
        sign = draw.pick((" times ", " * ", " / ", " x ", " divided by ", "*"))
        form = draw.pick(("What is {}?", "{}", "{} =", "How much is {}?"))
        return form.format(f"{draw.below(1000)}{sign}{draw.below(1000)}"), ONLY_SMALL
    if kind == "fact":
        return recall.absent_question(draw, [])
    if kind == "bare":
        return _nonsense(draw), UNCLEAR
    return stories.prose(draw, draw.between(1, 2)), HEARD
