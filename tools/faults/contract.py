"""Faults of the contract's JSON on its way to the prompt."""

from faults.fault import Fault

JSON = ("tests/clients/test_strict_json.py",)
LARGE = "tests/clients/test_large_json.py::test_"

FAULTS = (
    Fault(
        "contract: long whole numbers lose digits",
        "clients/large_json.py",
        "        return int(digits)\n",
        "        return int(float(digits))\n",
        JSON,
    ),
    Fault(
        "contract: 25.0 becomes 25",
        "clients/strict_json.py",
        "    value = float(digits)\n",
        "    value = float(digits)\n    value = int(value) if value.is_integer() else value\n",
        JSON,
    ),
    Fault(
        "contract: the last of two equal keys wins in silence",
        "clients/large_json.py",
        "        if key in value:\n",
        "        if key in ():\n",
        JSON,
    ),
    Fault(
        "contract: the last of two equal keys of a large text wins in silence",
        "clients/large_json.py",
        "            if key in found:\n",
        "            if key in ():\n",
        (LARGE + "a_key_that_comes_again_is_refused_before_what_follows_is_read",),
    ),
    Fault(
        "contract: a large text is read as deep as the interpreter goes",
        "clients/large_json.py",
        "        if self._depth > MAX_DEPTH:\n",
        "        if self._depth > 2 * MAX_DEPTH:\n",
        (LARGE + "what_is_deep_is_refused_before_much_of_it_is_read",),
    ),
    Fault(
        "contract: depth is not looked at",
        "clients/strict_json.py",
        "    if any(isinstance(item, dict | list) for item in level):\n",
        "    if any(isinstance(item, set) for item in level):\n",
        JSON,
    ),
    Fault(
        "contract: half a surrogate pair gets to the tokenizer",
        "clients/strict_json.py",
        '    if not text.isascii() and any("\\ud800" <= c <= "\\udfff" for c in text):\n',
        "    if not text:\n",
        JSON,
    ),
    Fault(
        "contract: a tool without description says that it is empty",
        "service/rpc/messages.py",
        '    if tool.HasField("description"):\n',
        "    if tool is not None:\n",
        JSON,
    ),
    Fault(
        "contract: an answer may name a call that nobody made",
        "service/rpc/messages.py",
        "    elif called and called not in calls:\n",
        "    elif called and called in ():\n",
        JSON,
    ),
    Fault(
        "contract: a tool is shown whose calls can never be read",
        "service/rpc/messages.py",
        "        elif not is_name(tool.name):\n",
        "        elif not tool.name:\n",
        JSON,
    ),
    Fault(
        "contract: thoughts that the template does not know are lost",
        "service/text/chat_template.py",
        'lost = name in message and not traits.shows(message["role"], name)',
        'lost = name in message and name[0] != "r" and not traits.shows(message["role"], name)',
        JSON,
    ),
)
