"""How an engine comes to be: how much fits into memory, ranks built and warmed up.

Here live sizing and its advice, what builds one rank or several, and what an engine tells of itself
once it stands. `client` and the programs of processes come in, each once. Nothing here runs a step
that a request waits for.
"""
