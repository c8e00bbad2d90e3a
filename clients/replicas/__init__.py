"""Several replicas behind one client: where a call goes, and how a stream that breaks goes on.

Who chooses (`affinity`, `fleet`), what an end means (`faults`), and what follows it
(`call_failover`, and `stream_failover` for streams) know no gRPC channel and read no clock of their
own; `channels` and the loops do the talking. `quire.clients.client` and `async_client` come in here
where there are several addresses, and never for a single one.
"""
