"""The server: text, calls and their limits, around an engine that only knows token ids.

Subpackages, from the top: cli, ray, app, openai and gateway, rpc, telemetry; admission, answers,
constraints, security, text and models. The entry point in pyproject.toml is `cli`. Imports only go
down, to `quire.engine`, and to the clients' mapping of OpenAI's bodies.
"""
