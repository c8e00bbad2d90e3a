"""Files of requests in OpenAI's batch format, answered line by line into a file of results.

Used by `commands.batch`. Nothing here knows a terminal; a server answers, as for every other
client, perhaps one that was started for the file (`own_server`).
"""
