"""The unary calls of the foreign contract: health, the model, the server, its loads.

Invariant: what other clients do is shown to operators only, as over our own contract; paths of this
machine are shown to nobody.
"""

import datetime
import json
import time
from typing import Any

from quire.service.gateway.open_calls import OpenCalls
from quire.service.gateway.protos import Protos
from quire.service.lifecycle import Lifecycle, Phase
from quire.service.rpc.call_admission import Serving
from quire.service.rpc.servicer import InferenceServicer
from quire.service.security.auth import Caller

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Answers:
    """The unary calls of one server."""

    def __init__(
        self,
        protos: Protos,
        servicer: InferenceServicer,
        lifecycle: Lifecycle,
        calls: OpenCalls,
        version: str,
    ) -> None:
        self._engine = protos.engine
        self._servicer = servicer
        self._lifecycle = lifecycle
        self._calls = calls
        self._version = version
        self._began = time.monotonic()

    def loaded(self) -> Serving:
        """Also while draining. Raises Refusal."""
        serving = self._servicer.serving
        if serving is None or self._lifecycle.phase is Phase.DEAD:
            refusal = self._lifecycle.refusal()
            assert refusal is not None
            raise refusal
        return serving

    async def health(self, _request: Any, _caller: Caller) -> Any:
        """Whether calls are let in."""
        refusal = self._lifecycle.refusal()
        message = "ready" if refusal is None else refusal.message
        return self._engine.HealthCheckResponse(healthy=refusal is None, message=message)

    async def abort(self, request: Any, caller: Caller) -> Any:
        """Ends the caller's own calls; ids that are not open are nothing."""
        self._calls.abort(caller.client, request.request_ids)
        return self._engine.AbortResponse()

    async def model(self, _request: Any, _caller: Caller) -> Any:
        """The served model. Raises Refusal."""
        model = self.loaded().model
        info, generation = model.info, model.info.generation
        advised = {name: getattr(generation, name) for name in _SAMPLING}
        return self._engine.GetModelInfoResponse(
            model_path=model.name,
            served_model_name=model.name,
            is_generation=True,
            max_context_length=info.max_model_len,
            max_req_input_len=info.max_model_len - 1,
            vocab_size=info.vocab_size,
            architectures=[info.architecture],
            eos_token_ids=model.eos_token_ids,
            default_sampling_params_json=json.dumps(
                {name: value for name, value in advised.items() if value is not None}
            ),
        )

    async def server(self, _request: Any, caller: Caller) -> Any:
        """How the server runs. Raises Refusal."""
        serving = self.loaded()
        info, stats = serving.model.info, serving.engine.stats()
        options = info.options
        return self._engine.GetServerInfoResponse(
            active_requests=stats.running + stats.waiting if caller.operator else 0,
            uptime_seconds=time.monotonic() - self._began,
            server_type="vllm-grpc",
            data_parallel_size=1,
            kv_cache_dtype=options.get("kv_cache_dtype", "auto"),
            block_size=info.block_size,
            model_dtype=info.dtype,
            max_num_seqs=int(options.get("max_num_seqs", 0)),
            constrained_decoding_start="first_token",
        )

    async def loads(self, request: Any, caller: Caller) -> Any:
        """The server's loads, for operators. Raises Refusal."""
        serving = self.loaded()
        serving.stats.allow_loads(operator=caller.operator)
        await serving.stats.turn(caller.client)
        ranks = [] if request.HasField("dp_rank") and request.dp_rank else [self._load(serving)]
        return self._engine.GetLoadsResponse(
            timestamp=datetime.datetime.now(datetime.UTC).isoformat(),
            version=self._version,
            dp_rank_count=1,
            loads=ranks,
        )

    def _load(self, serving: Serving) -> Any:
        info, stats = serving.model.info, serving.engine.stats()
        used = stats.blocks_in_use * info.block_size
        most = max(stats.blocks_total * info.block_size, 1)
        slots = int(info.options.get("max_num_seqs", 0))
        return self._engine.SchedulerLoad(
            dp_rank=0,
            num_running_reqs=stats.running,
            num_waiting_reqs=stats.waiting,
            num_total_reqs=stats.running + stats.waiting,
            num_used_tokens=used,
            max_total_num_tokens=most,
            token_usage=used / most,
            cache_hit_rate=stats.prefix_tokens_hit / max(stats.prefix_tokens_queried, 1),
            utilization=stats.running / slots if slots else 0.0,
            max_running_requests=slots,
        )
