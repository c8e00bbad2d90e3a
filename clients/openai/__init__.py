"""OpenAI's and Anthropic's bodies as messages of the contract, and its messages as their answers.

One mapping for both users: `quire batch`, which reads bodies from a file, and the service's HTTP
API, for which this is the one part of the clients that it may use. Nothing here sends, waits or
knows gRPC; limits on values, beyond what the contract's fields can hold, are the server's.
"""
