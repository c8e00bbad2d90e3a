"""A client with nothing but the stubs that protoc makes: what any other language would write too.

python examples/python_stubs.py "Tell me a story." 127.0.0.1:50051
"""

import sys

import grpc

from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc


def main(question: str, address: str) -> int:
    """Streams one answer to standard output; returns the exit code."""
    request = pb.GenerateRequest(
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=question)]),
        sampling=pb.SamplingParams(max_tokens=100, temperature=0.6),
    )
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        try:
            for response in stub.Generate(request, timeout=60):
                kind = response.WhichOneof("event")
                if kind == "delta":
                    print(response.delta.text, end="", flush=True)
                elif kind == "finished":
                    reason = pb.FinishReason.Name(response.finished.reason)
                    used = response.finished.usage
                    print(f"\n[{reason}, {used.completion_tokens} tokens]")
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(*(words + ["Tell me a story.", "127.0.0.1:50051"][len(words) :])))
