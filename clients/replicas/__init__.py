"""Several replicas behind one client: where a call goes, and how a stream that breaks goes on.

Who chooses (`affinity`, `fleet`), what an end means (`faults`), and one call's way through the
fleet (`call_failover`, and `journey` for streams) know no gRPC channel and read no clock of their
own; `lines`, `travel` and `async_travel` do the talking. `quire.clients.client` and `async_client`
come in here where there are several addresses, and never for a single one.
"""
