"""A client over TLS with an API key: Quire's own, which checks the server and names what is wrong.

python examples/python_tls.py "Tell me a story." localhost:50051 ca.crt

The key stands in the environment (QUIRE_CLIENT_API_KEY), where no list of processes shows it.
"""

import os
import sys

from quire import TLS, Client, ClientError, Message


def main(question: str, address: str, authority: str) -> int:
    """Streams one answer to standard output; returns the exit code."""
    try:
        with Client(
            address,
            tls=TLS(root=authority),  # TLS() alone trusts the system's authorities
            api_key=os.environ.get("QUIRE_CLIENT_API_KEY"),
            timeout=60,
        ) as client:
            generation = client.generate([Message("user", question)], max_tokens=100)
            for piece in generation.text_stream():
                print(piece, end="", flush=True)
            print()
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(*(words + ["Tell me a story.", "localhost:50051", "ca.crt"][len(words) :])))
