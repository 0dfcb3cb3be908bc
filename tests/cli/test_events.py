"""The field names of `make --json` are a contract with other tools."""

import json
import math

from ftbuild.errors import Place
from ftbuild.events import Finished, Planned, Progress, Started, Summary, Warned, to_json


def test_started_names_rule_and_reason() -> None:
    assert to_json(Started("helper", "sft", "`epochs`: 1 → 2")) == {
        "event": "started",
        "label": "helper",
        "rule": "sft",
        "reason": "`epochs`: 1 → 2",
    }


def test_progress_has_step_steps_and_metrics() -> None:
    assert to_json(Progress("helper", 3, 9, {"loss": 1.5})) == {
        "event": "progress",
        "label": "helper",
        "step": 3,
        "steps": 9,
        "metrics": {"loss": 1.5},
    }


def test_a_loss_that_is_not_a_number_is_null_and_the_line_stays_json() -> None:
    line = json.dumps(to_json(Progress("helper", 3, None, {"loss": math.nan, "lr": math.inf})))
    assert line == (
        '{"event": "progress", "label": "helper", "step": 3, "steps": null, '
        '"metrics": {"loss": null, "lr": null}}'
    )


def test_finished_has_the_five_fields_and_fragments_only_where_there_are_some() -> None:
    plain = Finished("chats", "built", key="a" * 64, digest="b" * 64, seconds=2.5)
    assert to_json(plain) == {
        "event": "finished",
        "label": "chats",
        "outcome": "built",
        "key": "a" * 64,
        "digest": "b" * 64,
        "seconds": 2.5,
    }
    cut = Finished("chats", "fresh", key="a" * 64, fragments=(8, 1), cut_off=True)
    assert to_json(cut) == {
        "event": "finished",
        "label": "chats",
        "outcome": "fresh",
        "key": "a" * 64,
        "digest": None,
        "seconds": 0.0,
        "fragments": {"total": 8, "built": 1},
        "cut_off": True,
    }


def test_a_failure_says_where_and_shows_the_end_of_its_log() -> None:
    event = Finished(
        "helper",
        "failed",
        seconds=1.0,
        error="error[E0801]: no rows",
        where=Place("data/chats.jsonl", 4, 1),
        log_tail=("one", "two"),
    )
    assert to_json(event) == {
        "event": "finished",
        "label": "helper",
        "outcome": "failed",
        "key": None,
        "digest": None,
        "seconds": 1.0,
        "error": "error[E0801]: no rows",
        "where": {"path": "data/chats.jsonl", "line": 4, "column": 1},
        "log_tail": ["one", "two"],
    }


def test_events_of_no_single_target_have_the_label_null() -> None:
    assert to_json(Planned(5, 2, {"helper": 3.0})) == {
        "event": "planned",
        "label": None,
        "total": 5,
        "jobs": 2,
    }
    assert to_json(Summary(1, 2, 3, 4, 5, 1, 6.5, 70.0)) == {
        "event": "summary",
        "label": None,
        "built": 1,
        "fresh": 2,
        "fetched": 3,
        "failed": 4,
        "skipped": 5,
        "cut_off": 1,
        "seconds": 6.5,
        "saved_s": 70.0,
        "fetched_bytes": 0,
        "sent_bytes": 0,
    }


def test_a_warning_names_its_target() -> None:
    assert to_json(Warned("helper", "no eos")) == {
        "event": "warned",
        "label": "helper",
        "text": "no eos",
    }
