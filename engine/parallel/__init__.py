"""Several ranks that share one model: their processes, what they are told, what they exchange.

Here live the plan's codec, the exchange of tensors, both ends of the line between rank 0, which
schedules, and the others, which replay its plans, and how other nodes come in. The builder
comes in. Nothing here decides what runs, and nothing that crosses is ever code: fixed layouts, JSON
while starting, no pickle.
"""
