"""Files of requests in OpenAI's batch format, answered line by line into a file of results.

`commands.batch` comes in. Nothing here knows a terminal; what answers is a server, like for every
other client, perhaps one that was started for the file (`own_server`).
"""
