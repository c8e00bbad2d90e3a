"""The options about queue and rates, as admission wants them."""

from quire.service.admission.admission import Policy
from quire.service.admission.rate_limits import Limits
from quire.service.settings import Settings


def policy(settings: Settings) -> Policy:
    """The bounds of the queue."""
    service = settings.service
    return Policy(
        slots=settings.engine.max_num_seqs,
        max_waiting=service.max_waiting,
        max_waiting_tokens=service.max_waiting_tokens,
        max_queue_seconds=service.max_queue_seconds,
        queue_target_seconds=service.queue_target_seconds,
        queue_burst_seconds=service.queue_burst_seconds,
    )


def limits(settings: Settings) -> Limits:
    """The limits of each client."""
    service = settings.service
    return Limits(
        requests=service.rate_limit_requests,
        tokens=service.rate_limit_tokens,
        burst_seconds=service.rate_limit_burst_seconds,
        streams=service.max_streams_per_client,
    )
