"""Between an engine and whoever asks: handles on the asyncio side, links to a thread or a process.

Here live AsyncEngine, the pacer, and both kinds of link with their frames. The service comes in
through `async_engine`. Nothing here plans, touches a device, or knows text.
"""
