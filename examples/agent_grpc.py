"""An agent over gRPC: the model calls two tools until it can answer.

python examples/agent_grpc.py "Find the price of violin, then add 55." localhost:50051

Start the server with `quire serve`; the embedded model knows such tasks.
"""

import sys

from agent_tools import TOOLS, call_tool

from quire import Client, ClientError, Message

TURNS = 6


def answer(client: Client, question: str) -> str:
    """The last answer; each call is told on the way."""
    chat = [Message("user", question)]
    for _ in range(TURNS):
        (said,) = client.generate(chat, tools=TOOLS, temperature=0.0, max_tokens=200).completions()
        if not said.tool_calls:
            return said.text
        chat.append(Message("assistant", said.text, tool_calls=said.tool_calls))
        for call in said.tool_calls:
            result = call_tool(call.name, call.arguments)
            print(f"{call.name} {call.arguments} -> {result}")
            chat.append(Message("tool", result, tool_call_id=call.id))
    return "no answer"


def main(question: str, address: str) -> int:
    """Prints calls and answer; returns the exit code."""
    try:
        with Client(address, timeout=60) as client:
            print(answer(client, question))
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    defaults = ["Find the price of violin, then add 55.", "localhost:50051"]
    sys.exit(main(*(words + defaults[len(words) :])))
