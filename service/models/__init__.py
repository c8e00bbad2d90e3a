"""What `--model` means, and the model that ships with Quire.

Used by `cli` and `app`. Nothing here loads a weight.
"""
