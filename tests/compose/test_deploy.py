"""The files for other people's clouds, against the schemas that can be had without one."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
CLUSTER, VOLUME = yaml.safe_load_all((DEPLOY / "kubernetes" / "raycluster.yaml").read_text())
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]


def valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("group", GROUPS)
def test_a_pod_is_one_that_kubernetes_takes_and_is_closed(group: dict[str, Any]) -> None:
    template = group["template"]
    valid({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template})
    assert template["spec"]["securityContext"]["runAsNonRoot"]
    for container in template["spec"]["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not [
            entry["name"] for entry in container["env"] if "PASSWORD" in entry["name"] and "value" in entry
        ]


def test_the_cluster_has_a_token_and_the_job_finds_it() -> None:
    valid(VOLUME)
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    job = yaml.safe_load((DEPLOY / "kubernetes" / "rayjob.yaml").read_text())
    assert job["spec"]["clusterSelector"]["ray.io/cluster"] == CLUSTER["metadata"]["name"]


def test_ray_up_takes_the_cluster_of_aws() -> None:
    found = find_spec("ray")
    assert found is not None and found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((DEPLOY / "aws.yaml").read_text())
    jsonschema.validate(cluster, schema)
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all("RAY_AUTH_MODE=token" in line for line in cluster[commands] if "ray start" in line)
