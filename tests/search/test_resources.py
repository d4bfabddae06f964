"""What a trial is given, and how many fit on the nodes there are."""

import pytest

from data.errors import UserError
from search.resources import check_resources, per_worker
from search.spec import ResourcesPart

HEAD = {"memory": 2.0**31}
NODE = {"CPU": 4.0, "GPU": 1.0, "memory": 8 * 2.0**30}


def test_a_head_without_cores_takes_no_trials_and_is_no_obstacle() -> None:
    resources = ResourcesPart(cpus_per_trial=1)
    assert check_resources(resources, [HEAD, NODE], "the cluster") == 4
    assert per_worker(resources, [HEAD, NODE]) == {"CPU": 1.0, "GPU": 0.25}


def test_trials_fit_node_by_node_and_no_more_than_the_sweep_allows_itself() -> None:
    odd = [{"CPU": 3.0, "memory": 2.0**33}, {"CPU": 3.0, "memory": 2.0**33}]
    assert check_resources(ResourcesPart(cpus_per_trial=2), odd, "the cluster") == 2  # not six cores by two
    assert check_resources(ResourcesPart(memory_gib_per_trial=3), [NODE, NODE], "the cluster") == 4
    assert check_resources(ResourcesPart(trials_at_once=3), [NODE, NODE], "the cluster") == 3


def test_what_no_node_can_give_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="memory_gib_per_trial: 9 asked, the largest node has 8"):
        check_resources(ResourcesPart(memory_gib_per_trial=9), [NODE, NODE], "the largest node")
    apart = [{"CPU": 8.0, "memory": 2.0**30}, {"CPU": 1.0, "memory": 2.0**33}]
    with pytest.raises(UserError, match="no node with all of"):
        check_resources(ResourcesPart(cpus_per_trial=4, memory_gib_per_trial=4), apart, "the cluster")
