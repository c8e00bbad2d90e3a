"""Faults of small things: bytes that are no message, early signals, files that hang."""

from faults.fault import Fault

_UNDECODABLE = ("tests/service/admission/test_undecodable.py",)
INTAKE = "service/admission/intake.py"

FAULTS = (
    Fault(
        "intake: bytes that are no message end in a trace",
        INTAKE,
        "            raise errors.malformed() from None",
        "            raise",
        _UNDECODABLE,
    ),
    Fault(
        "intake: a message that is too large is counted nowhere",
        INTAKE,
        "                if receipt.failed:  # gRPC itself",
        "                if not receipt:  # gRPC itself",
        _UNDECODABLE,
    ),
    Fault(
        "files: what is asked for during a look is lost",
        "service/security/reload.py",
        "            self._asked.clear()  # before",
        "            self._watched.refresh()  # before",
        ("tests/service/security/test_revocation.py",),
    ),
    Fault(
        "signals: one that comes early ends the server",
        "clients/cli.py",
        'if sys.argv[1:2] == ["serve"]:',
        'if sys.argv[1:2] == ["server"]:',
        ("tests/service/app/test_early_signals.py",),
    ),
    Fault(
        "dry run: what starts with a short cache is said not to fit",
        "engine/startup/fit.py",
        "_against_length(config, plan), starts=starts)",
        "_against_length(config, plan))",
        ("tests/service/cli/test_dry_run.py",),
    ),
    Fault(
        "dry run: what has no room for a block is said to start",
        "engine/startup/fit.py",
        "starts = plan.num_blocks > 0",
        "starts = True",
        ("tests/service/cli/test_dry_run.py",),
    ),
    Fault(
        "help: options lose their groups",
        "clients/help.py",
        'getattr(param, "rich_help_panel", None) or kind',
        "kind",
        ("tests/clients/test_help.py",),
    ),
    Fault(
        "commands: a refusal names the contract's field",
        "clients/commands/option_names.py",
        "    told = _ANYWHERE.sub(lambda found: OPTIONS[found[1]], told)\n",
        "",
        ("tests/clients/commands/test_fields.py",),
    ),
    Fault(
        "generate: a prompt that is too long is said to have met no template",
        "clients/commands/generate.py",
        ' and "no chat template" in error.details.violations[0].description',
        "",
        ("tests/clients/commands/test_fields.py",),
    ),
    Fault(
        "end: a request whose body is awaited ends without a word",
        INTAKE,
        "            reading.give_up()\n        for turn",
        "            pass\n        for turn",
        ("tests/service/admission/test_intake.py",),
    ),
)
