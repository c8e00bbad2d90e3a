"""Several ranks that share one model: their processes, their messages, and collectives.

Contains the plan's codec, the exchange of tensors, both ends of the channel between rank 0, which
schedules, and the others, which replay its plans, and the joining of other nodes. Used by
`startup`. Nothing here decides what runs, and no code is ever sent: fixed layouts, JSON at the
start, no pickle.
"""
