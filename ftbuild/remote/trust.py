"""Whether the change that is being built may write to a shared store.

Whoever can write a record can make every colleague's build use their bytes: a record under the
right key is believed. So a job of continuous integration that builds a change from a fork only
reads (CVE-2025-36852 is what happens else). The server's own rights must say the same: what a
job is told by its environment, a change can change.
"""

import json
from collections.abc import Mapping
from typing import Any

VARIABLE = "FTBUILD_REMOTE_WRITE"
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_PULL_REQUESTS = ("pull_request", "pull_request_target", "pull_request_review", "workflow_run")


def why_read_only(environment: Mapping[str, str], setting: bool | None) -> str | None:
    """Return why a remote store is only read here, None if it may be written to.

    The environment says it first, then the setting; neither is asked in a job for a fork unless
    the environment allows it, for FTBUILD.toml is part of the change.
    """
    said = environment.get(VARIABLE, "").lower()
    if said in _YES:
        return None
    if said in _NO:
        return f"{VARIABLE} is {said}"
    if (fork := fork_of(environment)) is not None:
        return f"this job builds a change from {fork}"
    return "remote_write is false" if setting is False else None


def fork_of(environment: Mapping[str, str]) -> str | None:
    """Return where the change comes from if it is not from the project itself."""
    if environment.get("GITHUB_ACTIONS") == "true":
        return _github(environment)
    if environment.get("GITLAB_CI"):
        return _gitlab(environment)
    return None


def _github(environment: Mapping[str, str]) -> str | None:
    event = environment.get("GITHUB_EVENT_NAME", "")
    if event not in _PULL_REQUESTS:
        return None
    try:
        with open(environment["GITHUB_EVENT_PATH"], "rb") as file:
            document = json.load(file)
        own = document["repository"]["full_name"]
        head = _github_head(document, event)
    except (OSError, KeyError, TypeError, ValueError):
        return "a pull request of unknown origin"  # what cannot be known is not trusted
    return None if head == own else "a fork"


def _github_head(document: Any, event: str) -> Any:
    if event == "workflow_run":
        return document["workflow_run"]["head_repository"]["full_name"]
    return document["pull_request"]["head"]["repo"]["full_name"]


def _gitlab(environment: Mapping[str, str]) -> str | None:
    source = environment.get("CI_MERGE_REQUEST_SOURCE_PROJECT_ID")
    if source is None and environment.get("CI_PIPELINE_SOURCE") != "merge_request_event":
        return None
    is_own = source is not None and source == environment.get("CI_MERGE_REQUEST_PROJECT_ID")
    return None if is_own else "a fork"
