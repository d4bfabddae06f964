from search.resources import check_resources, per_trial
from search.spec import ResourcesPart


def test_a_head_without_cores_takes_no_trials_and_is_no_obstacle() -> None:
    head, worker = {"memory": 2.0**31}, {"CPU": 4.0, "GPU": 1.0, "memory": 2.0**33}
    resources = ResourcesPart(cpus_per_trial=1)
    assert check_resources(resources, [head, worker], "the cluster") == 4
    assert per_trial(resources, [head, worker]) == {"CPU": 1.0, "GPU": 0.25}
