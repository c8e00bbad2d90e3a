"""The HTTP API that OpenAI's clients speak: a second face over the same call.

`app` opens it. A request's JSON becomes a GenerateRequest and goes through rpc's servicer, so what
a call must pass, may have and leaves behind is written down once; what comes back becomes JSON. No
rule about requests lives here but the names that HTTP gives their fields.
"""
