"""Layers: embedding, attention, MLP, their products, and each rank's share of them.

Used by `decoder` and `gpt2`. A layer says what fills its weights (`placement`) and asks
`weight_formats` how they are stored. Nothing here knows an architecture or reads a file.
"""
