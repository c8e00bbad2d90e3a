"""What models are made of: embedding, attention, MLP, their products, each rank's share of them.

A file an idea; `decoder` and `gpt2` come in. A layer says what fills its weights (`placement`) and
asks `forms` what they are held as. Nothing here knows an architecture or reads a file.
"""
