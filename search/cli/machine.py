"""The commands for this machine: ui, migrate, doctor."""

from __future__ import annotations

import json
import sys

import click

from binsweep.search.cli.options import home_folder

DEFAULT_UI_PORT = 5000


@click.command()
@click.option("--port", default=DEFAULT_UI_PORT, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--allowed-hosts",
    default="",
    envvar="MLFLOW_SERVER_ALLOWED_HOSTS",
    metavar="HOST,...",
    help="Names by which a browser may come to it, as through a tunnel; * is any.",
)
@click.option(
    "--static-prefix",
    default="",
    envvar="MLFLOW_STATIC_PREFIX",
    metavar="/PATH",
    help="The path under which a proxy shows it.",
)
def ui(port: int, allowed_hosts: str, static_prefix: str) -> None:
    """Open the MLflow UI of this home; with MLFLOW_TRACKING_URI set, say where it is."""
    from binsweep.tracking.mlflow_server.named_server import named_server
    from binsweep.tracking.mlflow_server.ui import run_ui

    if remote := named_server():
        print(f"MLflow UI at {remote} (MLFLOW_TRACKING_URI)")
        return
    code = run_ui(
        home_folder(),
        port,
        lambda url: print(f"MLflow UI at {url} (Ctrl-C ends it)", flush=True),
        [host.strip() for host in allowed_hosts.split(",") if host.strip()],
        static_prefix,
    )
    sys.exit(code)


@click.command()
def migrate() -> None:
    """Bring the MLflow database of this home, written by an older version, up to date; a copy of it is kept."""
    from binsweep.tracking.mlflow_server.migration import migrate_database

    copy = migrate_database(home_folder())
    print(f"the MLflow database is up to date; as it was before, it lies in {copy}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def doctor(as_json: bool) -> None:
    """Check this machine; every line that is not right has a remedy."""
    from binsweep.search.workflows.doctor import examine

    findings = examine(home_folder())
    for finding in findings:
        if not as_json:
            remedy = f"  -> {finding.remedy}" if finding.remedy else ""
            print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name:<12} {finding.text}{remedy}")
    if as_json:
        print(json.dumps([vars(finding) for finding in findings]))
    sys.exit(0 if all(finding.ok for finding in findings) else 1)
