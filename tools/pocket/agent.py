"""An agent's loop with two tools, and twenty fixed tasks for it.

Invariant: a task is completed when the model ends each of its turns itself, calls what is there
with arguments that the tool takes, and its last answer holds every text that the task wants. The
figures can come from nowhere but the tools.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chat import CALL, CALLED, Call, Definition, Message, render

TURNS = 4
"""Asked this often without a last answer, a task is given up."""
_CALL = re.compile(f"{CALL}\n(.*?)\n{CALLED}", re.DOTALL)
Say = Callable[[Sequence[str]], list[str]]
"""Prompts in, answers out (empty where the model did not end it)."""


def _described(name: str, description: str, parameter: str) -> Definition:
    schema = {
        "type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter],
    }  # fmt: skip
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = (
    _described("calculator", "Works out an arithmetic expression.", "expression"),
    _described("lookup", "Looks up an entry in a table.", "key"),
)
TABLE = {
    "lantern": "48", "kettle": "35", "violin": "620", "Mira": "Lisbon", "Otto": "417",
    "umbrella": "19", "compass": "73", "Ella": "baker",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What the user asks, and texts that the last answer must hold."""

    question: str
    wants: tuple[str, ...]


TASKS = (
    Task("What is 317 * 46?", ("14582",)),
    Task("Calculate 8123 - 4999.", ("3124",)),
    Task("How much is 2718 plus 3141?", ("5859",)),
    Task("Work out (12 + 7) * 31.", ("589",)),
    Task("What is 64 times 128?", ("8192",)),
    Task("Compute 5000 - 7321.", ("-2321",)),
    Task("905 * 17", ("15385",)),
    Task("What is the price of lantern?", ("48",)),
    Task("Look up the city of Mira.", ("Lisbon",)),
    Task("Find the number of Otto.", ("417",)),
    Task("What is Ella's job?", ("baker",)),
    Task("Tell me the price of violin.", ("620",)),
    Task("Look up the price of kettle.", ("35",)),
    Task("What is the weight of compass?", ("73",)),
    Task("Look up the price of umbrella, then multiply it by 12.", ("19", "228")),
    Task("Find the price of violin, then add 55.", ("620", "675")),
    Task("Look up the price of lantern, then subtract 9.", ("48", "39")),
    Task("Tell me the weight of compass, then multiply it by 21.", ("73", "1533")),
    Task("What is 44 * 55? What is the price of kettle?", ("2420", "35")),
    Task("Look up the price of umbrella. And what is 1000 - 77?", ("19", "923")),
)

_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calculate(expression: str) -> int:
    """Sums, differences and products of whole numbers. Raises ValueError for all else."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            found: int = _OPERATIONS[type(node.op)](value(node.left), value(node.right))
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        raise ValueError(f"not a sum: {expression}")

    try:
        return value(ast.parse(expression, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"not a sum: {expression}") from error


def call_tool(call: Call) -> str:
    """What a tool returns. Raises ValueError or KeyError where it does not take the call."""
    if call.name == "calculator":
        return str(calculate(str(call.arguments["expression"])))
    if call.name == "lookup":
        return TABLE[str(call.arguments["key"])]
    raise KeyError(call.name)


def read_calls(text: str) -> tuple[Call, ...]:
    """The calls in an answer. Raises ValueError or KeyError where one is not whole."""
    read = [json.loads(written) for written in _CALL.findall(text)]
    return tuple(Call(one["name"], one["arguments"]) for one in read)


class _Loop:
    """One task under way."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.messages = [Message("user", task.question)]
        self.over = self.completed = False

    @property
    def prompt(self) -> str:
        return render(self.messages, ask=True, tools=TOOLS)

    def take(self, text: str) -> None:
        """One turn of the model; what it called is called."""
        try:
            calls = read_calls(text)
            results = [call_tool(call) for call in calls]
        except (ValueError, KeyError, TypeError):
            self.over = True
            return
        self.messages.append(Message("assistant", "" if calls else text, calls=calls))
        self.messages += [Message("tool", result) for result in results]
        if not calls:
            self.over = True
            called = any(message.calls for message in self.messages)
            wants = all(re.search(rf"(?<!\d){re.escape(w)}(?!\d)", text) for w in self.task.wants)
            self.completed = called and wants


def completed(say: Say) -> list[bool]:
    """Which of the tasks the model completes; open ones are asked together."""
    loops = [_Loop(task) for task in TASKS]
    for _ in range(TURNS):
        going = [loop for loop in loops if not loop.over]
        if not going:
            break
        for loop, text in zip(going, say([loop.prompt for loop in going]), strict=True):
            loop.take(text)
    return [loop.completed for loop in loops]
