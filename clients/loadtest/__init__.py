"""The load test: what to send (workloads), when (arrivals), how (workers), and what came of it."""
