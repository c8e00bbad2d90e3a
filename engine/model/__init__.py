"""What a model is and computes: configurations, architectures, and the layers they are made of.

Here live Hugging Face's files as plain values, the registry, one file an architecture. Weights and
runner come in. Nothing here reads a weight file, plans, or reads back from the device.
"""
