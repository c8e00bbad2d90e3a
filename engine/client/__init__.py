"""The client side of an engine: asyncio handles, and links to a thread or a process.

Contains AsyncEngine, the pacer, and both kinds of link with their frames. The service's entry point
is `async_engine`. Nothing here plans, touches a device, or knows text.
"""
