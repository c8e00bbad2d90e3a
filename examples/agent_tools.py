"""Two tools that the agents beside this file import: a calculator and a small table.

Each is described as OpenAI's API describes one, and called with the JSON text of its arguments.
What a tool cannot do it says, so that the model can go on.
"""

import ast
import json
import operator

TABLE = {"lantern": "48", "kettle": "35", "violin": "620", "Mira": "Lisbon", "Otto": "417"}
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def _described(name: str, description: str, parameter: str) -> dict:
    properties = {parameter: {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": [parameter]}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    _described("calculator", "Works out an arithmetic expression.", "expression"),
    _described("lookup", "Looks up an entry in a table.", "key"),
]


def calculate(expression: str) -> int:
    """Sums, differences and products of whole numbers; a ValueError for all else."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        raise ValueError("not a sum")

    return value(ast.parse(expression, mode="eval").body)


def call_tool(name: str, arguments: str) -> str:
    """What a tool says to a call. arguments: JSON text, as the model wrote it."""
    try:
        given = json.loads(arguments)
        if name == "calculator":
            return str(calculate(given["expression"]))
        if name == "lookup":
            return TABLE.get(given["key"], "nothing")
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        return f"error: {error}"
    return f"error: no tool {name}"
