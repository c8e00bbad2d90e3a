"""Faults of the course: its small engine, and what holds its chapters together."""

from faults.fault import Fault

MINI = "tests/course/test_mini.py"
ENGINE = f"{MINI}::test_the_engine_says_what_transformers_says"
EXERCISES = "tests/course/test_exercises.py"
CHAPTERS = "tests/course/test_chapters.py"

FAULTS = (
    Fault(
        "quire: the course's new tokens see those behind them",
        "course/mini/layers.py",
        "triu(known - new + 1)",
        "triu(known)",
        (f"{MINI}::test_with_and_without_a_cache_it_says_what_transformers_says",),
    ),
    Fault(
        "quire: the course's blocks are named by their own tokens alone",
        "course/mini/prefix.py",
        "hashlib.sha256(parent + struct",
        "hashlib.sha256(ROOT + struct",
        (f"{MINI}::test_the_same_words_behind_other_words_are_not_found",),
    ),
    Fault(
        "quire: the course takes a whole prompt from the cache",
        "course/mini/prefix.py",
        "block_hashes(tokens[:-1], self.block_size)",
        "block_hashes(tokens, self.block_size)",
        (f"{MINI}::test_a_prompt_that_is_known_whole_leaves_a_token_over",),
    ),
    Fault(
        "quire: the course's preempted requests keep their blocks",
        "course/mini/scheduler.py",
        "        self.pool.give_back(victim.table)\n",
        "",
        (ENGINE,),
    ),
    Fault(
        "quire: the course's check takes any result for right",
        "course/checking.py",
        "    if _same(got, right):\n        return\n",
        "    if got is not None:\n        return\n",
        (f"{EXERCISES}::test_each_misconception_is_named",),
    ),
    Fault(
        "quire: the course's tests take the learner's file for the one handed out",
        "course/chapters.py",
        '    before, rest = solution(number).read_text(encoding="utf-8").split(HOLE_BEGINS)\n',
        '    file = folder(number) / "exercise.py"\n'
        '    before, rest = file.read_text(encoding="utf-8").split(HOLE_BEGINS)\n',
        (f"{EXERCISES}::test_a_learners_fill_changes_nothing",),
    ),
    Fault(
        "quire: the course's figures may be anything",
        "course/lab.py",
        "return len(kept) == len(fresh) and all(map(alike, kept, fresh))",
        "return len(kept) == len(fresh)",
        (f"{CHAPTERS}::test_figures_that_differ_by_more_than_rounding_are_seen",),
    ),
    Fault(
        "quire: the course's Chinese text says another number than the English one",
        "course/03-pages/README.zh.md",
        "一个词元要 6,144 字节",
        "一个词元要 6,441 字节",
        ("tests/course/test_chinese.py::test_numbers_in_the_prose_are_those_of_the_english_page",),
    ),
    Fault(
        "quire: the course's Chinese text says another percentage than the English one",
        "course/11-many-cards-many-replicas/README.zh.md",
        "也有 66% 换了地方",
        "也有 60% 换了地方",
        ("tests/course/test_chinese.py::test_numbers_in_the_prose_are_those_of_the_english_page",),
    ),
    Fault(
        "quire: the course's Chinese text leads to the English answers",
        "course/07-prefixes/README.zh.md",
        "(../solutions/answers.zh.md)",
        "(../solutions/answers.md)",
        (
            "tests/course/test_chinese.py"
            "::test_pages_lead_to_one_another_and_to_the_chinese_page_where_there_is_one",
        ),
    ),
    Fault(
        "quire: the course's Chinese table calls a chapter by another name",
        "course/README.zh.md",
        "[找回前缀]",
        "[前缀缓存]",
        (
            "tests/course/test_chinese.py"
            "::test_the_course_names_its_chapters_as_they_name_themselves",
        ),
    ),
)
