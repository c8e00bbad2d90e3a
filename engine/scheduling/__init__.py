"""Who runs next, on which cache blocks. No torch, no clock, no randomness.

Here live the requests under way, the waiting queue, the block pool with its prefix cache, and the
plan. The loop comes in through `scheduler.Scheduler`. Nothing here touches a device or knows text.
"""
