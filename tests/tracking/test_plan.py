import json

from mlflow.entities import Metric, Param, RunTag

from binsweep.tracking.runlog.batching import Entity, plan_runs, split_into_batches
from binsweep.tracking.runlog.sanitize import sanitize_name, sanitize_params


def test_requests_stay_within_the_servers_limits_and_lose_nothing() -> None:
    entities: list[Entity] = [Param(f"p{i}", "\N{PACKAGE}" * 6000) for i in range(230)]
    entities += [RunTag(f"t{i}", "x" * 8000) for i in range(230)]
    entities += [Metric("m" * 250, i, 0, i) for i in range(3500)]
    parts = list(split_into_batches(entities))
    assert [entity for part in parts for entity in part] == entities
    for part in parts:
        assert sum(isinstance(entity, Param) for entity in part) <= 100
        assert sum(isinstance(entity, RunTag) for entity in part) <= 100
        assert len(part) <= 1000
        assert len(json.dumps([[entity.key, entity.value] for entity in part])) < 1_000_000
    assert len(list(split_into_batches([Metric("loss", i, 0, i) for i in range(1000)]))) == 1
    assert list(split_into_batches([])) == []


def test_many_records_of_a_run_become_one_plan() -> None:
    begin = {"kind": "start", "name": "a", "parent": None, "tags": {"x": "1"}, "params": {"lr": "0.1"}}
    records = [
        {"n": 1, "at": 10, "key": "a", **begin},
        {"n": 2, "at": 11, "key": "b", **begin},
        {"n": 3, "at": 12, "key": "a", "kind": "metrics", "step": 0, "values": {"loss": 1.0}},
        {"n": 4, "at": 13, "key": "a", "kind": "tags", "values": {"x": "2"}},
        {"n": 5, "at": 14, "key": "a", "kind": "params", "values": {"lr": "0.2", "epochs": "3"}},
        {"n": 6, "at": 15, "key": "a", "kind": "metrics", "step": 1, "values": {"loss": 0.5}},
        {"n": 7, "at": 16, "key": "a", "kind": "end", "status": "FINISHED"},
        {"n": 8, "at": 17, "key": "b", "kind": "end", "status": "KILLED"},
        {"n": 9, "at": 18, "key": "b", **begin},
        {"n": 10, "at": 19, "key": "c", "kind": "something of a later release"},
    ]
    a, b, c = plan_runs(records)
    assert (a.key, a.tags, a.params, a.status) == (
        "a",
        {"x": "2"},
        {"lr": "0.1", "epochs": "3"},
        ("FINISHED", 16),
    )
    assert [(m.key, m.value, m.timestamp, m.step) for m in a.metrics] == [
        ("loss", 1.0, 12, 0),
        ("loss", 0.5, 15, 1),
    ]
    assert (b.key, b.status) == ("b", ("RUNNING", 18))  # begun again after it was ended
    assert c.status is None


def test_names_and_texts_are_made_legal() -> None:
    assert sanitize_name("val_accuracy") == "val_accuracy"
    assert sanitize_name("accuracy/5 items: (full?)") == "accuracy/5 items: _full__"
    assert sanitize_name("/../a//b/") == "a/b"
    assert sanitize_name("") == sanitize_name("..") == "_"
    assert sanitize_name("\ud800\0") == "__"
    assert len(sanitize_name("x" * 400)) == 250
    assert sanitize_params({"a": 1e-3, "b": None, "c": "\ud800\0"}) == {
        "a": "0.001",
        "b": "None",
        "c": "?\N{REPLACEMENT CHARACTER}",
    }
