"""Fills a model's parameters, from a checkpoint's bytes or seeded noise.

Contains the safetensors reader, the loader and random weights. Used by `startup.build_rank`.
Nothing here maps a file into memory, unpickles, or knows what a layer computes.
"""
