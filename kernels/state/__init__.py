"""The slots' state between steps, a step's inputs made from it, copies of whole blocks."""
