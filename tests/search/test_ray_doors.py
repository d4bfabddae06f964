import ipaddress
import os

import psutil
import pytest

from binsweep.search.ray_backend.runner import ray_constants, start_ray


@pytest.mark.integration
def test_a_sweeps_own_ray_listens_on_the_loopback_alone() -> None:
    with start_ray(1):
        me = psutil.Process()
        found = [c for p in [me, *me.children(recursive=True)] for c in p.net_connections("inet")]
        doors = [ipaddress.ip_address(c.laddr.ip) for c in found if c.status == psutil.CONN_LISTEN]
    assert len(doors) > 4
    assert all((getattr(door, "ipv4_mapped", None) or door).is_loopback for door in doors), doors
    # A node of a real cluster that this process starts later is not bound to it.
    assert ray_constants.ENABLE_RAY_CLUSTER and ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR not in os.environ
