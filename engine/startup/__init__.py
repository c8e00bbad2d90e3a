"""Building an engine: how much fits into memory, ranks built and warmed up.

Contains sizing and its advice, the building of one rank or several, and what an engine reports
about itself once it is built. Used by `client` and by the programs of processes, once each. Nothing
here runs a step that a request waits for.
"""
