"""The commands for this machine: ui, mlflow, migrate, doctor."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click

from binsweep.search.cli.options import optional_dashboard_option
from binsweep.search.workflows.home import home_folder

DEFAULT_UI_PORT = 5000
DEFAULT_MLFLOW_PORT = 5002  # 5001 is that of `binsweep serve`


@click.command()
@click.option("--port", default=DEFAULT_UI_PORT, show_default=True, type=click.IntRange(1, 65535))
@click.option("--open", "then_open", is_flag=True, help="Open the page in a browser.")
@optional_dashboard_option
def ui(port: int, then_open: bool, dashboard: str | None) -> None:
    """Show all sweeps and models of this home on one page, and steer them there; MLflow's UI runs beside it."""
    from binsweep.search.ui.serve import opening_file, serve_ui

    home = home_folder()
    with tempfile.TemporaryDirectory(prefix="binsweep-ui-") as folder:

        def ready(url: str) -> None:
            print(f"{url} (Ctrl-C ends it)", flush=True)
            if then_open:
                click.launch(str(opening_file(Path(folder), url)))

        code = serve_ui(home, port, ready, dashboard)
    sys.exit(code)


@click.command()
@click.option("--port", default=DEFAULT_MLFLOW_PORT, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--allowed-hosts",
    default="",
    envvar="MLFLOW_SERVER_ALLOWED_HOSTS",
    metavar="HOST,...",
    help="Host names under which browsers may reach it, for example through a tunnel; * allows all.",
)
@click.option(
    "--static-prefix",
    default="",
    envvar="MLFLOW_STATIC_PREFIX",
    metavar="/PATH",
    help="The path under which a proxy serves it.",
)
def mlflow(port: int, allowed_hosts: str, static_prefix: str) -> None:
    """Start MLflow's own UI of this home alone; with MLFLOW_TRACKING_URI set, print its address."""
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
    """Migrate the MLflow database of this home from an older MLflow version; a copy is kept."""
    from binsweep.tracking.mlflow_server.migration import migrate_database

    copy = migrate_database(home_folder())
    if copy is None:
        print("the MLflow database is up to date: nothing to migrate")
    else:
        print(f"the MLflow database is now up to date; a copy of the old one is {copy}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(as_json: bool) -> None:
    """Check this machine; every failed check comes with a remedy."""
    from binsweep.search.workflows.doctor import examine

    findings = examine(home_folder())
    for finding in findings:
        if not as_json:
            remedy = f"  -> {finding.remedy}" if finding.remedy else ""
            print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name:<12} {finding.text}{remedy}")
    if as_json:
        print(json.dumps([vars(finding) for finding in findings]))
    sys.exit(0 if all(finding.ok for finding in findings) else 1)
