"""What several commands share: options, and how their values are understood."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from binsweep.data.errors import UserError

HOME_HINT = "set BINSWEEP_HOME to a folder where you may write"


set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key of the spec."
)
promote_option = click.option(
    "--promote", "then_promote", is_flag=True, help="At the end promote, serve and try the best model."
)
dashboard_option = click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    required=True,
    help="The cluster's dashboard, such as http://127.0.0.1:8265 (or RAY_API_SERVER_ADDRESS).",
)
split_by_option = click.option(
    "--by",
    type=click.Choice(["id", "group", "folder"]),
    default="id",
    show_default=True,
    help="What the splits divide, as in data.split.",
)
classes_option = click.option("--classes", help="Only these counts, as 0-5 or 1,2,3.")


def home_folder() -> Path:
    """Where everything of the product lies: BINSWEEP_HOME, or .binsweep in the current folder.

    Raises UserError where that is no folder. A home that does not exist yet is made by whoever writes there.
    """
    asked = os.environ.get("BINSWEEP_HOME") or ".binsweep"
    try:
        home = Path(asked).expanduser().absolute()
    except RuntimeError as error:  # ~NAME of somebody who has no account here, or ~ without HOME
        raise UserError(f"BINSWEEP_HOME: nobody knows which folder {asked} is", HOME_HINT) from error
    if home.exists() and not home.is_dir():
        raise UserError(f"BINSWEEP_HOME: {home} is not a folder", HOME_HINT)
    if "?" in str(home):  # there its options begin in a database's address
        raise UserError(
            f"BINSWEEP_HOME: {home} has a question mark, which no database's address can have", HOME_HINT
        )
    return home


def require_writable(home: Path) -> None:
    """Raise UserError where no sweep can be kept, before minutes are spent on its data."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        sweeps = home / "sweeps"
        with tempfile.TemporaryFile(dir=sweeps if sweeps.exists() else home):
            pass
    except OSError as error:
        raise UserError(f"BINSWEEP_HOME: {home} cannot be written: {error.strerror}", HOME_HINT) from error


def parse_counts(text: str, option: str = "--classes") -> list[int]:
    """`0-5` or `1,2,3` as a list; raises UserError for anything else."""
    try:
        low, dash, high = text.partition("-")
        counts = list(range(int(low), int(high) + 1)) if dash else [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0:
        raise UserError(f"{option} {text}: not counts", "write 0-5 or 1,2,3")
    return counts


def model_uri(model: str) -> str:
    """NAME means its champion; NAME@alias and NAME/version that version; a URI itself."""
    if ":/" in model:
        return model
    return f"models:/{model}" if "@" in model or "/" in model else f"models:/{model}@champion"
