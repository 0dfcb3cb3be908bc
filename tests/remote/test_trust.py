"""Who may write: everyone at a desk, and jobs of CI for the project's own changes."""

import json
from pathlib import Path

import pytest

from ftbuild.remote.trust import why_read_only

FORK = "this job builds a change from a fork"
UNKNOWN = "this job builds a change from a pull request of unknown origin"


def github(tmp_path: Path, event: str, document: object) -> dict[str, str]:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(document))
    return {
        "GITHUB_ACTIONS": "true",
        "GITHUB_EVENT_NAME": event,
        "GITHUB_EVENT_PATH": str(path),
    }


def pull_request(head: object) -> dict[str, object]:
    repo = {"full_name": head} if head else None
    return {"repository": {"full_name": "a/b"}, "pull_request": {"head": {"repo": repo}}}


@pytest.mark.parametrize(
    ("event", "document", "why"),
    [
        ("push", {}, None),
        ("merge_group", {}, None),
        ("pull_request", pull_request("a/b"), None),
        ("pull_request", pull_request("eve/b"), FORK),
        ("pull_request_target", pull_request("eve/b"), FORK),
        ("pull_request", pull_request(None), UNKNOWN),  # the fork was deleted
        ("pull_request", {}, UNKNOWN),
        ("pull_request", [], UNKNOWN),
        (
            "workflow_run",
            {
                "repository": {"full_name": "a/b"},
                "workflow_run": {"head_repository": {"full_name": "eve/b"}},
            },
            FORK,
        ),
    ],
)
@pytest.mark.fault("40", "a job of CI that may be of a fork")
def test_github(tmp_path: Path, event: str, document: object, why: str | None) -> None:
    environment = github(tmp_path, event, document)
    assert why_read_only(environment, None) == why
    assert why_read_only(environment, True) == why  # the change could have written that
    assert why_read_only({**environment, "FTBUILD_REMOTE_WRITE": "1"}, None) is None


def test_github_without_an_event_is_not_trusted() -> None:
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_EVENT_NAME": "pull_request"}
    assert why_read_only(environment, None) == UNKNOWN


@pytest.mark.parametrize(
    ("source", "pipeline", "why"),
    [
        (None, "push", None),
        ("7", "merge_request_event", None),
        ("8", "merge_request_event", FORK),
        (None, "merge_request_event", FORK),
    ],
)
@pytest.mark.fault("40", "a job of CI that may be of a fork")
def test_gitlab(source: str | None, pipeline: str, why: str | None) -> None:
    environment = {"GITLAB_CI": "true", "CI_PIPELINE_SOURCE": pipeline}
    if pipeline != "push":
        environment["CI_MERGE_REQUEST_PROJECT_ID"] = "7"
    if source:
        environment["CI_MERGE_REQUEST_SOURCE_PROJECT_ID"] = source
    assert why_read_only(environment, None) == why


def test_setting_and_environment_at_a_desk() -> None:
    assert why_read_only({}, None) is None
    assert why_read_only({}, False) == "remote_write is false"
    assert why_read_only({"FTBUILD_REMOTE_WRITE": "0"}, True) == "FTBUILD_REMOTE_WRITE is 0"
    assert why_read_only({"FTBUILD_REMOTE_WRITE": "1"}, False) is None
