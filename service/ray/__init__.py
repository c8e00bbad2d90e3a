"""Replicas under Ray Serve: an engine per replica, and an ingress that routes, resumes and answers.

`serve run quire.service.ray:app` or `quire ray`. Only used by the command line and Ray's own
workers; Ray is optional, and imported when an application is built. A replica runs `app`'s whole
server; routing of prompts and resuming of broken streams are the clients' (`clients/replicas`).
Nothing here listens beyond this machine.
"""

from typing import Any


def app(arguments: dict[str, str]) -> Any:
    """The application, for `serve run` and Serve's configuration files: see Plan for its names."""
    from quire.service.ray.application import application
    from quire.service.ray.application_plan import Plan

    return application(Plan.of(arguments))
