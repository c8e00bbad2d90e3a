"""The largest sizes that a configuration may name: they hold before anything is allocated."""

MOST_VOCAB = 1 << 20
MOST_POSITIONS = 1 << 20  # where each has a row of its own
MOST_WIDTH = 1 << 18  # of the hidden state, and within a feed-forward layer
MOST_LAYERS = 1024
MOST_HEADS = 1024
MOST_HEAD_DIM = 1024
MOST_EXPERTS = 4096
