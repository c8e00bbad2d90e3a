"""Several replicas behind one client: routing of calls, and resuming of broken streams.

Routing (`affinity`, `fleet`), the meaning of an end (`faults`), and failover (`call_failover`, and
`stream_failover` for streams) know no gRPC channel and read no clock of their own; `channels` and
the loops do the I/O. Used by `quire.clients.client` and `async_client` where there are several
addresses, and never for a single one.
"""
