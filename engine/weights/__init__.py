"""Bytes of a checkpoint, or seeded noise, into a model's parameters.

Here live the safetensors reader, the loader and random weights. `startup.build_rank` comes in.
Nothing here maps a file into memory, unpickles, or knows what a layer computes.
"""
