"""Faults of what a schema means."""

from faults.fault import Fault

TOOLS = "tests/service/answers/test_tool_grammar.py::test_"
HOSTILE = "tests/service/constraints/test_hostile_constraints.py::test_"
CHECKS = "tests/service/constraints/test_schema_checks.py::test_"
SUITE = "tests/service/constraints/test_schema_suite.py::test_"

FAULTS = (
    Fault(
        "constraint: a name of the schema's is written in codes, with another's value",
        "service/constraints/formats.py",
        '{**made, "x-guidance": {**_ESCAPES, **options}}',
        "made",
        (SUITE + "a_name_of_the_schema_s_is_not_written_in_other_letters",),
    ),
    Fault(
        "constraint: a number that is left out is written where the other bound is near",
        "service/constraints/formats.py",
        "            _close(found, left_out)\n",
        "            pass\n",
        (SUITE + "a_number_that_a_bound_leaves_out_is_not_written",),
    ),
    Fault(
        "constraint: a format whose letters are written as codes is llguidance's",
        "service/constraints/formats.py",
        '"\\\\u" in text or ',
        "",
        (SUITE + "a_time_is_one_that_readers_take",),
    ),
    Fault(
        "constraint: a number of a value may be one that no double is",
        "service/constraints/schema_checks.py",
        "        elif place in VALUES:\n",
        "        elif False:\n",
        (SUITE + "a_value_that_llguidance_would_round_is_refused",),
    ),
    Fault(
        "constraint: a bound of numbers is one that no double is",
        "service/constraints/schema_checks.py",
        "MAX_NUMBER = 2**53 ",
        "MAX_NUMBER = 2**60 ",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: a name that is written twice counts as two properties",
        "service/constraints/schema_checks.py",
        "            _check_names(together)\n",
        "",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: a property called const is a value",
        "service/constraints/schema_checks.py",
        "_NAMES if key in NAMED else _SCHEMA",
        "_SCHEMA",
        (CHECKS + "a_property_may_be_called_as_a_keyword_is_and_a_value_holds_no_schema",),
    ),
    Fault(
        "constraint: a reference leads to a value, which nobody has looked at",
        "service/constraints/schema_checks.py",
        '        _check_reference(item.get("$ref"))\n',
        "",
        (HOSTILE + "each_is_refused_by_its_field_and_its_reason_and_leaves_nothing",),
    ),
    Fault(
        "constraint: a value's last bit is llguidance's",
        "service/constraints/schema_checks.py",
        "_as_read(value) != value",
        "False",
        (CHECKS + "each_number_that_is_let_in_is_written_to_its_last_bit",),
    ),
    Fault(
        "constraint: spaces that a schema asks for are passed over",
        "service/constraints/sources.py",
        "{} if _OF_SPACES & options.keys() else _SPACES",
        "_SPACES",
        (CHECKS + "spaces_are_those_that_a_schema_asks_for",),
    ),
    Fault(
        "constraint: the spaces that a strict tool asks for are passed over",
        "service/answers/tool_grammar.py",
        '    if "x-guidance" in schema:\n',
        "    if False:\n",
        (TOOLS + "hostile_schemas_of_strict_tools_are_refused_by_name_in_one_line",),
    ),
)
