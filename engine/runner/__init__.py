"""One rank's device work: a plan becomes launches, launches become tokens.

Contains slots, uploads, captured graphs, inputs and the sampler. The loop's entry point is
`runner.Runner`. Nothing here decides what runs, and nothing waits for the device.
"""
