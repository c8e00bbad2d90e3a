"""Replicas under Ray Serve: an engine a replica, and an ingress that routes, resumes and answers.

`serve run quire.service.ray:app` or `quire ray`. Only the command line comes in here, and Ray's own
workers; Ray is optional, and imported when an application is built. What a replica runs is `app`'s
server, whole; how a prompt finds its replica, and how a broken stream goes on, is the clients' own
(`clients/replicas`). Nothing here listens beyond this machine.
"""

from typing import Any


def app(arguments: dict[str, str]) -> Any:
    """The application, for `serve run` and Serve's configuration files: see Plan for its names."""
    from quire.service.ray.application import application
    from quire.service.ray.application_plan import Plan

    return application(Plan.of(arguments))
