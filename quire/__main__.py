"""`python -m quire`: the `quire` command, of the interpreter that is named."""

from quire.clients.cli import main

if __name__ == "__main__":
    main()
