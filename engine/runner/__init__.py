"""One rank's device work: a plan becomes launches, launches become tokens.

Here live slots, uploads, captured graphs, inputs and the sampler. The loop comes in through
`runner.Runner`. Nothing here decides what runs, and nothing waits for the device.
"""
