"""Who runs next, on which cache blocks. No torch, no clock, no randomness.

Here live the requests under way, the waiting queue, the block pool with its prefix cache, the plan,
and the taking in of results. The loop comes in through `scheduler.Scheduler`; a runner knows `plan`
alone. Nothing here touches a device or knows text.
"""
