"""JSON out of a sentence: the schema holds the answer, so that it always parses.

python examples/extract_json.py "Mira is 31 years old. Mira lives in Oslo." http://localhost:8000/v1

Start the server with `quire serve`. The question names the keys, for the model reads no schema.
"""

import json
import sys

import openai

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
        "city": {"type": "string", "maxLength": 40},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


def extract(client: openai.OpenAI, text: str) -> dict:
    """The object that the schema describes."""
    told = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": f"Extract the name, age, city as JSON:\n{text}"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
        },
        temperature=0,
        max_tokens=100,
    )
    return json.loads(told.choices[0].message.content or "")


def main(text: str, url: str) -> int:
    """Prints the object; returns the exit code."""
    try:
        with openai.OpenAI(base_url=url, api_key="none", timeout=60) as client:
            print(json.dumps(extract(client, text), ensure_ascii=False))
    except openai.OpenAIError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    defaults = ["Mira is 31 years old. Mira lives in Oslo.", "http://localhost:8000/v1"]
    sys.exit(main(*(words + defaults[len(words) :])))
