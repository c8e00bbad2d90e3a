"""Models: configurations, architectures, and the layers they are made of.

Contains Hugging Face's files as plain values, the registry, and one file per architecture. Used by
`weights` and `runner`. Nothing here reads a weight file, plans, or reads back from the device.
"""
