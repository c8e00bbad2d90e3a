"""Options that schedulers of one pool and of two pools share."""

from typing import NotRequired, TypedDict


class SchedulerOptions(TypedDict):
    """max_num_seqs: requests that run at once. max_num_batched_tokens: tokens in a step.
    max_model_len: tokens of a request, prompt included. two_phase: prompts first, in steps of their
    own."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    two_phase: NotRequired[bool]
