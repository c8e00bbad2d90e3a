"""What can be watched: counters, metrics, logs, traces.

`rpc` and `app` come in. Nothing here slows a call: counting is an addition, the rest is made at the
scrape or when a call has ended.
"""
