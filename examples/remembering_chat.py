"""A chat that remembers facts across turns, and what of each turn's prompt was computed at all.

    quire serve pocket                                # in another terminal
    python examples/remembering_chat.py 127.0.0.1:50051

A chat is sent whole with every turn, so its prompts grow; but what an earlier turn has computed is
in the prefix cache, and of each prompt little more than the newest question is computed.
"""

import sys

from quire import Client, ClientError, Delta, Finished, Message, Started

FACTS = (
    "Remember these facts. The code of Anna is 4812. The city of Tom is Oslo. The animal of Maria"
    " is a fox. The code of Peter is 7305. The colour of Lena is green. The tool of Oscar is a"
    " hammer. The fruit of Nina is a plum. The code of David is 2968. The job of Clara is baker."
)
QUESTIONS = (
    "What is the city of Tom?",
    "Tell me a short story about a cat.",
    "What is the code of Peter?",
    "What is the animal of Maria?",
)


def turn(client: Client, chat: list[Message], question: str) -> Message:
    """Asks with all that was said before; returns what the model says."""
    chat.append(Message("user", question))
    print(f"> {question}")
    pieces: list[str] = []
    for event in client.generate(chat, max_tokens=120, temperature=0):
        if isinstance(event, Delta):
            pieces.append(event.text)
            print(event.text, end="", flush=True)
        elif isinstance(event, Started):
            prompt, found = event.prompt_tokens, event.cached_tokens
        elif isinstance(event, Finished):
            print(
                f"\n  [prompt {prompt} tokens: {found} found in the cache, {prompt - found}"
                f" computed in {event.prefill_seconds * 1e3:.0f} ms]"
            )
    return Message("assistant", "".join(pieces))


def main(address: str = "127.0.0.1:50051") -> int:
    """Runs the chat; returns the exit code."""
    chat = [Message("user", FACTS), Message("assistant", "Noted.")]
    print(f"> {FACTS}\nNoted.")
    try:
        with Client(address, timeout=120) as client:
            for question in QUESTIONS:
                chat.append(turn(client, chat, question))
    except ClientError as error:
        print(f"{error}\nIs there a server? Start one with `quire serve pocket`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
