"""Which requests run next, on which cache blocks. No torch, no clock, no randomness.

Contains the unfinished requests, the waiting queue, the block pool with its prefix cache, the plan,
and the application of results. The loop's entry point is `scheduler.Scheduler`; a runner only knows
`plan`. Nothing here touches a device or knows text.
"""
