"""What a trial is given, and how many fit on the nodes there are."""

import os
from collections.abc import Mapping
from dataclasses import asdict

import pytest

from binsweep.data.errors import UserError
from binsweep.models.settings import Settings
from binsweep.search.execution.resources import TrialResources, check_resources, fits, trial_resources
from binsweep.search.execution.trial import hide_gpus
from binsweep.search.spec.schema import ResourceOverridesPart, ResourcesPart

HEAD = {"memory": 2.0**31}
NODE = {"CPU": 4.0, "GPU": 1.0, "memory": 8 * 2.0**30}


def test_a_head_without_cores_takes_no_trials_and_is_no_obstacle() -> None:
    resources = ResourcesPart(cpus_per_trial=1)
    assert check_resources(resources, [HEAD, NODE], "the cluster") == 4
    assert trial_resources(resources, [HEAD, NODE]).each == {"CPU": 1.0, "GPU": 0.25}


def test_trials_fit_node_by_node_and_no_more_than_the_sweep_allows_itself() -> None:
    odd = [{"CPU": 3.0, "memory": 2.0**33}, {"CPU": 3.0, "memory": 2.0**33}]
    assert check_resources(ResourcesPart(cpus_per_trial=2), odd, "the cluster") == 2  # not six cores by two
    assert check_resources(ResourcesPart(memory_gib_per_trial=3), [NODE, NODE], "the cluster") == 4
    assert check_resources(ResourcesPart(max_concurrent_trials=3), [NODE, NODE], "the cluster") == 3


def test_what_no_node_can_give_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="memory_gib_per_trial: 9 requested, the largest node has 8"):
        check_resources(ResourcesPart(memory_gib_per_trial=9), [NODE, NODE], "the largest node")
    apart = [{"CPU": 8.0, "memory": 2.0**30}, {"CPU": 1.0, "memory": 2.0**33}]
    with pytest.raises(UserError, match="no node with all of"):
        check_resources(ResourcesPart(cpus_per_trial=4, memory_gib_per_trial=4), apart, "the cluster")


def test_large_trials_get_their_own_and_others_no_gpu() -> None:
    large = ResourceOverridesPart(
        when={"backbone": ["resnet50"], "trainable": ["all"]}, gpus_per_trial=1, cpus_per_trial=2
    )
    resources = ResourcesPart(memory_gib_per_trial=2, overrides=large)

    def got(**settings: str) -> Mapping[str, float]:
        return trial_resources(resources.of(asdict(Settings(**settings))), [HEAD, NODE]).each

    small = {"CPU": 1.0, "GPU": 0.0, "memory": 2.0**31}
    assert got(backbone="resnet50", trainable="all") == {"CPU": 2.0, "GPU": 1.0, "memory": 2.0**31}
    assert got(backbone="resnet50", trainable="head") == small == got(backbone="resnet18", trainable="all")
    assert trial_resources(ResourcesPart(), [NODE]).each["GPU"] == 0.25  # without `large`, GPUs are for all


def test_large_trials_fill_what_the_others_leave() -> None:
    large = ResourceOverridesPart(when={"backbone": ["resnet50"]}, gpus_per_trial=1, cpus_per_trial=2)
    resources = ResourcesPart(cpus_per_trial=3, overrides=large)
    bare = {"CPU": 6.0}
    assert check_resources(resources, [NODE, bare], "the cluster") == 3  # one leaves a core of the GPU's node
    assert check_resources(resources, [{"CPU": 5.0, "GPU": 1.0}], "the cluster") == 2
    assert (
        check_resources(ResourcesPart(max_concurrent_trials=1, overrides=large), [NODE], "the cluster") == 1
    )
    with pytest.raises(UserError, match=r"resources\.overrides\.gpus_per_trial: 1 requested, Ray has 0"):
        check_resources(resources, [bare], "Ray")
    pair = ResourceOverridesPart(when={"backbone": ["resnet50"]}, workers_per_trial=3, cpus_per_trial=3)
    with pytest.raises(UserError, match=r"resources\.overrides\.workers_per_trial: 3 requested, 2 fit"):
        check_resources(ResourcesPart(overrides=pair), [bare], "Ray")


def test_trials_of_two_kinds_fit_together_where_each_has_its_place() -> None:
    small, large = TrialResources({"CPU": 1.0, "GPU": 0.0}), TrialResources({"CPU": 2.0, "GPU": 1.0})
    bare = {"CPU": 2.0}
    assert fits([small] * 6, [NODE, bare]) and not fits([small] * 7, [NODE, bare])
    assert fits([small] * 4 + [large], [NODE, bare]) and not fits([large] * 2, [NODE, bare])
    assert not fits([small] * 5 + [large], [NODE, bare])
    assert fits([TrialResources({"CPU": 1.0, "GPU": 0.1})] * 10, [{"CPU": 10.0, "GPU": 1.0}])
    assert fits([TrialResources({"CPU": 2.0}, 3)], [NODE, bare]) and not fits(
        [TrialResources({"CPU": 3.0}, 2)], [NODE, bare]
    )


def test_who_has_no_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    hide_gpus(TrialResources({"CPU": 1.0, "GPU": 0.5}))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    hide_gpus(TrialResources({"CPU": 1.0, "GPU": 0.0}))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
