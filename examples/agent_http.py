"""An agent over HTTP with OpenAI's own client: the model calls two tools until it can answer.

python examples/agent_http.py "Find the price of violin, then add 55." http://localhost:8000/v1

Start the server with `quire serve`; the embedded model knows such tasks.
"""

import sys

import openai
from agent_tools import TOOLS, call_tool

TURNS = 6


def answer(client: openai.OpenAI, question: str) -> str:
    """The last answer; each call is told on the way."""
    model = client.models.list().data[0].id
    chat = [{"role": "user", "content": question}]
    for _ in range(TURNS):
        told = client.chat.completions.create(
            model=model, messages=chat, tools=TOOLS, temperature=0, max_tokens=200
        )
        said = told.choices[0].message
        if not said.tool_calls:
            return said.content or ""
        chat.append(said.model_dump(exclude_none=True))
        for call in said.tool_calls:
            result = call_tool(call.function.name, call.function.arguments)
            print(f"{call.function.name} {call.function.arguments} -> {result}")
            chat.append({"role": "tool", "content": result, "tool_call_id": call.id})
    return "no answer"


def main(question: str, url: str) -> int:
    """Prints calls and answer; returns the exit code."""
    try:
        with openai.OpenAI(base_url=url, api_key="none", timeout=60) as client:
            print(answer(client, question))
    except openai.OpenAIError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    defaults = ["Find the price of violin, then add 55.", "http://localhost:8000/v1"]
    sys.exit(main(*(words + defaults[len(words) :])))
