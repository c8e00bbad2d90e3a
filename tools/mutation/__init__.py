"""How `tools/mutants.py` tries a fault: a copy of the tree (`tree`), a process with the libraries
that forks each run of tests (`preloaded`), and what earlier runs have told (`journal`)."""
