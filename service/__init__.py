"""The server: text, calls and their limits around an engine that knows ids alone.

Wings, from the top: cli, ray, app, openai and gateway, rpc, telemetry; admission, answers,
constraints, security, text and models. The entry point of pyproject.toml comes in through `cli`.
Imports go down only, to `quire.engine`, and to how clients write OpenAI's bodies.
"""
