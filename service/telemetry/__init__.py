"""Observability: counters, metrics, logs, traces.

Used by `rpc` and `app`. Nothing here slows a call: counting is an addition, everything else is
computed at the scrape or when a call has ended.
"""
