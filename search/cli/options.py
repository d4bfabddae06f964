"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

from binsweep.data.errors import UserError
from binsweep.data.labels import Label

Command = Callable[..., None]
Decorator = Callable[[Command], Command]

DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"

set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key of the spec."
)
promote_option = click.option(
    "--promote", "then_promote", is_flag=True, help="Afterwards promote the best model, serve it and try it."
)
classes_option = click.option(
    "--classes", help="Only these counts, as 0-5 or 1,2,3, or names, as ok,scratched."
)
labels_option = click.option(
    "--labels",
    type=click.Choice(["counts", "names"]),
    help="What the labels are. Default: counts, if they are whole numbers.",
)


def renamed_option(old: str, new: str) -> Decorator:
    """Refuse an option's former name with an error that gives its present one."""

    def refuse(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise UserError(f"{old} is now called {new}", f"use {new} {value}")

    # Eager: checked before a missing required option is reported.
    return click.option(
        old, f"former_{old[2:]}", hidden=True, expose_value=False, is_eager=True, callback=refuse
    )


def dashboard_option(command: Command) -> Command:
    """--dashboard, which was --address."""
    option = click.option(
        "--dashboard",
        metavar="URL",
        envvar=DASHBOARD_VARIABLE,
        required=True,
        help=f"Ray dashboard URL, such as http://127.0.0.1:8265 (or {DASHBOARD_VARIABLE}).",
    )
    return option(renamed_option("--address", "--dashboard")(command))


def optional_dashboard_option(command: Command) -> Command:
    """--dashboard for commands that are also for sweeps of this machine."""
    option = click.option(
        "--dashboard",
        metavar="URL",
        envvar=DASHBOARD_VARIABLE,
        help=f"Ray dashboard URL, for a submitted sweep (or {DASHBOARD_VARIABLE}).",
    )
    return option(renamed_option("--address", "--dashboard")(command))


def split_by_option(command: Command) -> Command:
    """--split-by, which was --by."""
    option = click.option(
        "--split-by",
        type=click.Choice(["id", "group", "folder"]),
        default="id",
        show_default=True,
        help="What is kept within one split, as in data.split.by.",
    )
    return option(renamed_option("--by", "--split-by")(command))


def parse_counts(text: str, option: str = "--classes") -> list[int]:
    """Parse `0-5` or `1,2,3`; raises UserError for anything else."""
    try:
        low, dash, high = text.partition("-")
        counts = list(range(int(low), int(high) + 1)) if dash else [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0:
        raise UserError(f"{option} {text}: not counts", "write 0-5 or 1,2,3")
    return counts


def parse_classes(text: str) -> list[Label]:
    """Parse counts, as `0-5` or `1,2,3`, or names of classes with commas between them; raises UserError for nothing."""
    if re.fullmatch(r"[0-9,\s-]*", text):
        return list(parse_counts(text))
    return [name.strip() for name in text.split(",") if name.strip()]
