"""docker-compose.yml as it is written; with BINSWEEP_COMPOSE=1, also as it runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
ONCE = {
    "s3-volume"
}  # changes an owner and ends: nothing to ask for health, nothing to start again, no secret
SECRET = re.compile("PASSWORD|SECRET|TOKEN|KEY$")
each_service = pytest.mark.parametrize("name", SERVICES)


def settings(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@each_service
def test_a_service_is_closed_bounded_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert all(service[limit] for limit in ("mem_limit", "cpus", "pids_limit"))
    image, _, tag = service["image"].rpartition(":")
    assert "/" in image and re.search(r"\d+\.\d+", tag), "an exact tag of a full name"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    if name in ONCE:
        assert service["restart"] == "no" and service["network_mode"] == "none"
        assert service["cap_add"] == ["CHOWN"] and "environment" not in service
        return
    assert service["restart"] == "unless-stopped"
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["healthcheck"]["test"][0] == "CMD" and service["healthcheck"]["start_period"] == "60s"
    assert "cap_add" not in service and "privileged" not in service


@each_service
def test_every_secret_of_a_service_passes_the_guard_and_stands_in_env(name: str) -> None:
    if name in ONCE:
        return
    service = SERVICES[name]
    assert service["entrypoint"][:2] == ["/bin/sh", "/guard.sh"]
    assert "./deploy/guard.sh:/guard.sh:ro" in service["volumes"]
    variables = service["environment"]
    guarded = variables["SECRETS"].split()
    # Names of accounts are no secrets; all else that looks like one is guarded, and none is written here.
    secret = {key for key in variables if SECRET.search(key) and key not in ("SECRETS", "ROOT_ACCESS_KEY")}
    assert secret - set(guarded) == {"AWS_ACCESS_KEY_ID"} & secret
    for key in guarded:
        assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?run deploy/new-env\}", variables[key]), key


def test_only_what_people_use_is_published_and_the_stores_reach_nothing_outside() -> None:
    published = {name for name, service in SERVICES.items() if "ports" in service}
    assert published == {"mlflow", "ray-head", "model-server"}
    assert yaml.safe_load(TEXT)["networks"]["inside"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == SERVICES["s3"]["networks"] == ["inside"]


def test_the_example_names_every_variable_and_new_env_fills_every_secret(tmp_path: Path) -> None:
    example = settings(ROOT / ".env.example")
    assert set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT)) == set(example)
    assert {key for key in example if example[key] == "change-me"} == {
        key for key in example if SECRET.search(key)
    }
    subprocess.run([ROOT / "deploy" / "new-env", tmp_path / ".env"], check=True)
    fresh = settings(tmp_path / ".env")
    secrets = [fresh[key] for key in example if SECRET.search(key)]
    assert len(set(secrets)) == len(secrets) and all(len(secret) == 48 for secret in secrets)
    assert {key: fresh[key] for key in fresh if not SECRET.search(key)} == {
        key: example[key] for key in example if not SECRET.search(key)
    }
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    again = subprocess.run([ROOT / "deploy" / "new-env", tmp_path / ".env"], capture_output=True, text=True)
    assert again.returncode == 2 and settings(tmp_path / ".env") == fresh


@pytest.mark.parametrize(
    ("value", "reason"),
    [("change-me", "is the example's"), ("", "is empty"), ("fifteen-letters", "is shorter")],
)
def test_the_guard_refuses(value: str, reason: str, tmp_path: Path) -> None:
    # Without its pause, which is there for restart policies.
    guard = tmp_path / "guard.sh"
    guard.write_text((ROOT / "deploy" / "guard.sh").read_text().replace("sleep 5", ":"))
    variables = {"PATH": os.environ["PATH"], "SECRETS": "GOOD TOKEN", "GOOD": "x" * 16, "TOKEN": value}
    done = subprocess.run(["sh", guard, "echo", "started"], env=variables, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert f"refusing to start: TOKEN {reason}" in done.stderr
    done = subprocess.run(
        ["sh", guard, "echo", "started"], env=variables | {"TOKEN": "y" * 16}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "started\n")


@pytest.mark.integration
@pytest.mark.timeout(3600)
def test_the_stack_keeps_what_it_promises() -> None:
    if os.environ.get("BINSWEEP_COMPOSE") != "1":
        pytest.skip(
            "takes 11 minutes for the images the first time and 5 to 12 for the rest: set BINSWEEP_COMPOSE=1"
        )
    tools = ("podman", "runc", "debootstrap", "npm", "/usr/libexec/podman/catatonit")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")
    subprocess.run(
        [ROOT / "tests" / "compose" / "run"],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        timeout=3500,
    )
