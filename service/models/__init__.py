"""What `--model` means, and the model that ships with Quire.

`cli` and `app` come in. Nothing here loads a weight.
"""
