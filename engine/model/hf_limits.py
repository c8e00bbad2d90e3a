"""The largest sizes that a configuration may name: they hold before anything is allocated."""

MAX_VOCAB = 1 << 20
MAX_POSITIONS = 1 << 20  # where each has a row of its own
MAX_WIDTH = 1 << 18  # of the hidden state, and within a feed-forward layer
MAX_LAYERS = 1024
MAX_HEADS = 1024
MAX_HEAD_DIM = 1024
MAX_EXPERTS = 4096
