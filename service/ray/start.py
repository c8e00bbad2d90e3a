"""How `quire ray` starts the application on this machine, in a Ray of its own.

Invariant: nothing is asked of Ray, nor imported of it, before it is kept on this machine: it reads
its environment when it is imported.
"""

import logging
import signal
import sys
import threading

from quire.engine.errors import ConfigError
from quire.service.ray import loopback
from quire.service.ray.loopback import HERE
from quire.service.ray.plan import Plan

NAME = "quire"
_ADD = "quire.v1.inference_pb2_grpc.add_InferenceServiceServicer_to_server"


def start(plan: Plan) -> None:
    """Ray, its proxies and the application; returns when all replicas are ready. Raises
    ConfigError where Ray is not installed."""
    if "ray" in sys.modules:
        raise ConfigError("ray has been imported already: it would listen on all addresses")
    loopback.keep_here()
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError(f"quire ray: needs the package ray (quire[ray]): {error}") from error
    loopback.stay_here()
    from quire.service.ray.application import application

    replicas = plan.max_replicas or plan.replicas
    ray.init(
        _node_ip_address=HERE,
        include_dashboard=False,
        num_cpus=int(plan.cpus * replicas) + 1,
        logging_level=logging.WARNING,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": loopback.listen_here},
    )
    serve.start(
        http_options={"host": HERE, "port": plan.http_port, "location": "HeadOnly"},
        grpc_options={"port": plan.port, "grpc_servicer_functions": [_ADD]},
    )
    serve.run(application(plan), name=NAME, route_prefix="/")


def run_forever(plan: Plan) -> int:
    """Until SIGINT or SIGTERM. One line on standard output says when it is ready."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    start(plan)
    print(f"serving {plan.model} on {HERE}:{plan.port}", flush=True)
    asked.wait()
    stop()
    return 0


def stop() -> None:
    """End it all."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()
