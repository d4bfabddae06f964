"""Where a sweep begins whose file names no initial points: recommended settings, as its space has them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from real_sweeps import run_here

from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.workflows.first_guesses import MAX_POINTS, initial_points

LR = {"low": 1e-4, "high": 0.1, "log": True}


def spec(space: dict[str, Any], **sections: Any) -> SweepSpec:
    raw = {"name": "first", "data": {"source": "."}, "space": space, "budget": {"minutes": 60}, **sections}
    return parse_spec(raw)


def test_it_begins_with_each_backbone() -> None:
    points = initial_points(spec({"backbone": ["efficientnet_lite0", "vgg16"], "lr": LR}))
    assert [dict(point.params) for point in points] == [
        {"backbone": "efficientnet_lite0", "lr": 1e-2},
        {"backbone": "vgg16", "lr": 1e-3},
    ]
    assert [point.reason for point in points] == [
        "the recommended start of efficientnet_lite0",
        "the recommended start of vgg16",
    ]
    (alone,) = initial_points(spec({"lr": LR}, model={"backbone": "vgg16", "trainable": "all"}))
    assert alone.params == {"lr": 1e-4}, "the rate of a whole network is another one"


def test_what_lies_outside_of_the_space_is_moved_into_it() -> None:
    space = {
        "lr": {"low": 0.02, "high": 0.1},
        "weight_decay": {"low": 0.005, "high": 0.095, "step": 0.03},
        "batch_size": [100, 48, 8],
        "augment": ["full", "none"],
        "precision": ["bf16", "auto"],
        "epochs": {"low": 4, "high": 64, "log": True},
        "views": {"low": 3, "high": 9},
    }
    (point,) = initial_points(spec(space))
    assert point.params == {
        "lr": 0.02,  # recommended: 0.01
        "weight_decay": pytest.approx(0.005),  # 0.01
        "batch_size": 48,  # 32, which is nearer to 48 than to 8 by its logarithm
        "augment": "full",  # neither the recommended flip nor a default is there
        "precision": "auto",  # the default
        "epochs": 15,  # nothing is recommended: the middle of 3.5 to 64.5 on a logarithmic scale
        "views": 6,
    }


def test_conditions_hold_and_what_is_recommended_follows_the_choices() -> None:
    momentum = {"low": 0.5, "high": 0.99, "when": {"optimizer": ["sgd"]}}
    space = {"lr": LR, "momentum": momentum, "optimizer": ["sgd", "adamw"], "trainable": ["head", "all"]}
    (point,) = initial_points(spec(space))
    assert point.params == {"lr": 1e-3, "optimizer": "adamw", "trainable": "all"}
    space["optimizer"] = ["sgd"]
    (point,) = initial_points(spec(space))
    assert point.params == {"lr": 1e-2, "momentum": 0.9, "optimizer": "sgd", "trainable": "all"}


def test_defaults_of_many_backbones_do_not_use_up_the_search() -> None:
    space = {"backbone": list(ARCHITECTURES)[:8], "lr": LR}
    assert len(initial_points(spec(space))) == MAX_POINTS
    for trials, count in ((1, 1), (4, 1), (5, 2), (10, 3), (16, 4), (100, 4)):
        assert len(initial_points(spec(space, budget={"trials": trials}))) == count, trials


def test_a_file_may_name_others_or_none_and_a_grid_has_its_own_order() -> None:
    space = {"lr": [0.01, 0.1]}
    assert initial_points(spec(space, search={"initial_points": []})) == []
    assert initial_points(spec(space, search={"sampler": "grid"})) == []
    (own,) = initial_points(spec(space, search={"initial_points": [{"lr": 0.1}]}))
    assert (own.params, own.reason) == ({"lr": 0.1}, "")
    assert len(initial_points(spec(space, search={"initial_points": None}))) == 1


DIMENSIONS = {
    "backbone": st.lists(st.sampled_from(list(ARCHITECTURES)), min_size=1, unique=True),
    "trainable": st.lists(st.sampled_from(["head", "last_stage", "all"]), min_size=1, unique=True),
    "optimizer": st.lists(st.sampled_from(["adamw", "sgd"]), min_size=1, unique=True),
    "lr": st.tuples(st.floats(1e-6, 1.0), st.floats(1.0, 10.0), st.booleans()).map(
        lambda x: {"low": x[0], "high": x[0] * x[1], "log": x[2]}
    ),
    "batch_size": st.lists(st.integers(2, 512), min_size=1, unique=True),
    "epochs": st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(1, 9)).map(
        lambda x: {"low": x[0], "high": x[0] + x[1], "step": x[2]}
    ),
    "momentum": st.just({"low": 0.5, "high": 0.99, "when": {"optimizer": ["sgd"]}}),
}


@settings(deadline=None, max_examples=60)
@given(st.fixed_dictionaries({}, optional=DIMENSIONS).filter(len))
def test_every_one_is_an_initial_point_that_a_file_could_name(space: dict[str, Any]) -> None:
    if "sgd" not in space.get("optimizer", []):
        space.pop("momentum", None)
    space = space or {"lr": LR}
    points = [dict(point.params) for point in initial_points(spec(space))]
    assert points
    assert spec(space, search={"initial_points": points}).search.initial_points == points


def test_a_dry_run_names_them(tmp_path: Path) -> None:
    raw = {
        "name": "first",
        "data": {"source": "synthetic://?images=60"},
        "space": {"backbone": ["efficientnet_lite0"], "lr": LR},
        "budget": {"trials": 4},
    }
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(raw))
    done = run_here("sweep", file, "--dry-run", BINSWEEP_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["search"]["initial_points"] == [
        {"backbone": "efficientnet_lite0", "lr": 0.01}
    ]
    begins = "begins with the recommended start of efficientnet_lite0: backbone efficientnet_lite0, lr 0.01"
    assert begins in done.stderr
