"""What `quire watch` serves to a browser on this machine: a page that shows what a server does.

Only used by the command. Nothing here listens beyond loopback, loads anything from elsewhere, or
shows a text that the viewer has not asked for here.
"""
