"""The application for Ray Serve: engines behind an ingress."""

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from quire.service.ray.application_plan import Plan
from quire.service.ray.ingress import Ingress
from quire.service.ray.replica import EngineReplica
from quire.service.ray.router import PrefixRouter

_MAX_ONGOING = 1 << 20  # calls: whether one may wait is the replica's own affair


def application(plan: Plan, kind: type[EngineReplica] = EngineReplica) -> Any:
    """The engines behind an ingress. kind: the replicas' class."""
    router = RequestRouterConfig(request_router_class=PrefixRouter)
    most = plan.max_replicas or plan.replicas
    options: dict[str, Any] = {
        "name": "engines",
        "max_ongoing_requests": _MAX_ONGOING,
        "request_router_config": router,
        "ray_actor_options": {"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        "health_check_period_s": 2,
    }
    if most > plan.replicas:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=plan.replicas,
            max_replicas=most,
            target_ongoing_requests=plan.target_ongoing,
            upscale_delay_s=3,
            look_back_period_s=2,
            metrics_interval_s=1,
        )
    else:
        options["num_replicas"] = plan.replicas
    engines = serve.deployment(kind, **options).bind(plan)
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(plan, engines)
