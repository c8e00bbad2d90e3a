"""The page that `quire watch` serves to a browser on this machine, to show a server at work.

Only used by the command. Nothing here listens beyond loopback, loads anything from elsewhere, or
shows text other than of the viewer's own prompts.
"""
