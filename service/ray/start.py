"""How `quire ray` starts the application on this machine, in a Ray of its own.

Invariant: Ray is neither used nor imported before it is restricted to this machine: it reads its
environment when it is imported.
"""

import logging
import signal
import sys
import threading

from quire.engine.errors import ConfigError
from quire.service.ray import loopback
from quire.service.ray.application_plan import Plan
from quire.service.ray.dropped import cancel_dropped
from quire.service.ray.loopback import HERE
from quire.service.ray.ray_defaults import set_ray_defaults
from quire.service.ray.replica import EngineReplica

NAME = "quire"
_ADD = "quire.v1.inference_pb2_grpc.add_InferenceServiceServicer_to_server"


def start(plan: Plan, kind: type[EngineReplica] = EngineReplica) -> None:
    """Ray, its proxies and the application; returns when all replicas are ready. kind: of the
    replicas. Raises ConfigError where Ray is not installed, or is another than can be kept here."""
    if "ray" in sys.modules:
        raise ConfigError("ray has been imported already: it would listen on all addresses")
    loopback.keep_here()
    set_ray_defaults()
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"ray: the package is missing; in a checkout: pip install '.[ray]' ({error})"
        ) from error
    loopback.stay_here()
    from quire.service.ray.application import application

    replicas = plan.max_replicas or plan.replicas
    ray.init(
        _node_ip_address=HERE,
        include_dashboard=False,
        num_cpus=int(plan.cpus * replicas) + 1,
        logging_level=logging.WARNING,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": prepare_worker},
    )
    serve.start(
        http_options={"host": HERE, "port": plan.http_port, "location": "HeadOnly"},
        grpc_options={"port": plan.port, "grpc_servicer_functions": [_ADD]},
        logging_config={"enable_access_log": False},  # a replica's server logs each call
    )
    serve.run(application(plan, kind), name=NAME, route_prefix="/")


def prepare_worker() -> None:
    """Run in each of Ray's workers before its work. Raises ConfigError, and the worker ends."""
    loopback.listen_here()
    cancel_dropped()


def run_forever(plan: Plan, kind: type[EngineReplica] = EngineReplica) -> int:
    """Run until SIGINT or SIGTERM. One line on standard output says when it is ready."""
    asked = threading.Event()
    _end_by(asked)
    start(plan, kind)
    _end_by(asked)  # Ray has set handlers of its own meanwhile, which would leave it running
    print(f"serving {plan.model} on {HERE}:{plan.port}", flush=True)
    asked.wait()
    stop()
    return 0


def _end_by(asked: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())


def stop() -> None:
    """End it all."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()
