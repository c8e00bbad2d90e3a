"""The limits that a request must keep to be able to run at all.

Invariant: a pure function of the request and three numbers, so it can be checked wherever those are
known: by the queue itself, and before a request is sent to an engine elsewhere. A request that
passes can always finish alone.
"""

from dataclasses import dataclass

from quire.engine.errors import RequestError, TooLongError
from quire.engine.request import MAX_ENDING_IDS, GenerationRequest


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """num_blocks: those that requests can have, the null block left out."""

    max_model_len: int
    block_size: int
    num_blocks: int

    def check(self, spec: GenerationRequest) -> None:
        """Raise RequestError if the request can never run."""
        prompt, params = len(spec.prompt_token_ids), spec.sampling
        if prompt == 0:
            raise RequestError("prompt", "is empty: at least one token is needed")
        if spec.pooling is not None:
            self._check_pooled(spec, prompt)
            return
        if params.max_tokens < 1:
            raise RequestError("max_tokens", f"{params.max_tokens} is below 1")
        if len(params.ending_ids) > MAX_ENDING_IDS:
            raise RequestError(
                "stop_token_ids",
                f"{len(params.ending_ids)} with the EOS ids; at most {MAX_ENDING_IDS} can be held",
            )
        if spec.n < 1 or (spec.n > 1 and spec.resume_token_ids):
            limit = "exactly 1 with resume_token_ids" if spec.resume_token_ids else "at least 1"
            raise RequestError("n", f"{spec.n}: must be {limit}")
        if spec.resume_token_ids and spec.prompt_logprobs is not None:
            raise RequestError(
                "prompt_logprobs", "excludes resume_token_ids: they were told before"
            )
        if len(spec.resume_token_ids) > params.max_tokens:
            raise RequestError(
                "resume_token_ids",
                f"{len(spec.resume_token_ids)} ids are more than max_tokens = {params.max_tokens}",
            )
        self._check_length(prompt, params.max_tokens)

    def _check_pooled(self, spec: GenerationRequest, prompt: int) -> None:
        """All of its prompt is computed, and nothing else."""
        if spec.n != 1 or spec.resume_token_ids or spec.constraint is not None:
            raise RequestError("pooling", "excludes n > 1, resume_token_ids and constraint")
        if spec.prompt_logprobs is not None:
            raise RequestError("pooling", "excludes prompt_logprobs")
        if prompt > self.max_model_len:
            raise TooLongError(
                "prompt", f"{prompt} tokens exceed max_model_len = {self.max_model_len}"
            )
        needed = -(-prompt // self.block_size)
        if self.num_blocks < needed:
            raise TooLongError(
                "prompt",
                f"{prompt} tokens need {needed} cache blocks of {self.block_size}; the cache has "
                f"{self.num_blocks}",
            )

    def _check_length(self, prompt: int, max_tokens: int) -> None:
        total = prompt + max_tokens
        if total > self.max_model_len:
            left = min(self.max_model_len, self.num_blocks * self.block_size + 1) - prompt
            fits = f": at most {left} fit" if left > 0 else ""
            limit = f"max_model_len = {self.max_model_len}{fits}"
            raise _too_long(prompt, max_tokens, f"exceed {limit}")
        # The last token is sampled, and never computed.
        needed, usable = -(-(total - 1) // self.block_size), self.num_blocks
        if needed > usable:
            limit = f"{needed} cache blocks of {self.block_size}; the cache has {usable}"
            raise _too_long(prompt, max_tokens, f"need {limit}")


def _too_long(prompt: int, max_tokens: int, limit: str) -> TooLongError:
    said = f"prompt ({prompt}) + max_tokens ({max_tokens}) = {prompt + max_tokens} tokens {limit}"
    return TooLongError("max_tokens", f"with it the prompt is too long: {said}")
