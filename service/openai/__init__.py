"""The HTTP API of OpenAI's clients: a second interface to the same call.

Opened by `app`. A request's JSON becomes a GenerateRequest and goes through rpc's servicer, so the
checks, limits and accounting of a call exist once; the messages become JSON. The only rules about
requests here are the names that HTTP gives their fields.
"""
