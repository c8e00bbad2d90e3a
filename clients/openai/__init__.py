"""OpenAI's bodies as messages of the contract, and its messages as OpenAI's answers.

One mapping for whoever speaks both: `quire batch`, which reads bodies from a file, and the
service's HTTP API, for which this is the one part of the clients that it may use. Nothing here
sends, waits or knows gRPC; what a value may be, beyond what the contract's field can hold, is the
server's affair.
"""
