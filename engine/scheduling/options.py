"""What a scheduler of one pool and of two are told alike."""

from typing import NotRequired, TypedDict


class SchedulerOptions(TypedDict):
    """max_num_seqs: requests that run at a time; max_num_batched_tokens: of a step; max_model_len:
    tokens of a request, its prompt among them; two_phase: prompts first, in steps of their own."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    two_phase: NotRequired[bool]
