"""A sweep from its spec on: the checks, its data, the sweep that it resumes or what it knows of earlier ones, its run.

The command line and the Python API both start sweeps here. This module imports little, so that a mistake in a spec is
reported before the frameworks are imported, which takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from binsweep.data.errors import UserError
from binsweep.search.execution.resources import Node
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.workflows.home import require_writable
from binsweep.search.workflows.notify import channels_of, notify, sweep_broken, sweep_over
from binsweep.search.workflows.preflight import Runner, check_before_start, print_warnings

if TYPE_CHECKING:  # these imports take seconds
    from binsweep.search.strategy.earlier_sweeps import FirstGuesses
    from binsweep.search.workflows.prepare import PreparedSweep
    from binsweep.search.workflows.sweep import SweepResult


class SweepError(Exception):
    """A sweep that has come to nothing: no trial has a result, or it was suspended and can be resumed."""


@dataclass(frozen=True)
class LaunchOptions:
    """What is asked of a sweep besides its spec.

    `nodes` are those of a Ray cluster that this process has joined; None: a Ray of its own. `resume` asks for the
    newest sweep of the spec's name, `folder` for that one; `start_new` for another sweep although one was interrupted.
    """

    runner: Runner = "ray"
    nodes: Sequence[Node] | None = None
    resume: bool = False
    folder: Path | None = None
    start_new: bool = False
    warm_starts: Sequence[str] = ()
    then_promote: bool = False
    profile: bool = False


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep that is ready to run: its data is read, and it is known which sweep it resumes, if any."""

    prepared: PreparedSweep
    options: LaunchOptions
    unfinished: Path | None
    warm_start: FirstGuesses | None

    def run(self, tracking_uri: str) -> SweepResult:
        """Run it. Raises KeyboardInterrupt, and whatever the runner fails with, once it can be resumed."""
        from binsweep.search.workflows.sweep import run_sweep

        options, spec, home = self.options, self.prepared.spec, self.prepared.home
        try:
            result = run_sweep(
                self.prepared,
                options.runner,
                tracking_uri,
                self.unfinished,
                self.warm_start,
                options.profile,
                options.nodes,
                options.then_promote,
            )
        except UserError:
            raise  # nothing has begun, and a person reads it
        except Exception as error:  # one who interrupts it knows
            notify(sweep_broken(spec, error), spec, home)
            raise
        notify(sweep_over(spec, result), spec, home)
        return result


def check_options(resume: bool, start_new: bool, warm_start: bool, cluster_without_ray: bool) -> None:
    """Raise UserError for options that exclude one another."""
    if resume and (start_new or warm_start):
        other = " and ".join(["--new"] * start_new + ["--warm-start"] * warm_start)
        raise UserError(
            f"--resume and {other} exclude one another", "--resume continues a sweep, the others start one"
        )
    if cluster_without_ray:
        raise UserError("--address and --runner local exclude one another", "omit one of them")


def plan_sweep(spec: SweepSpec, home: Path, options: LaunchOptions) -> PlannedSweep:
    """Check a sweep, read its data, and find the sweep that it resumes, or what it knows of earlier ones.

    Raises UserError for every mistake that can be found before the first trial; nothing is written then but banks.
    """
    check_before_start(spec, options.nodes, options.runner)
    channels_of(spec, home)

    # Imported after the spec is checked: they take seconds.
    from binsweep.search.history.sweep_state import find_unfinished, require_resumable
    from binsweep.search.workflows.prepare import prepare
    from binsweep.search.workflows.warm_start import earlier_folders, make_warm_start, read_earlier
    from binsweep.tracking.mlflow_server.named_server import require_named_servers

    sources = earlier_folders(home, options.warm_starts)
    earlier = read_earlier(sources, spec)
    require_writable(home)
    print_warnings(spec)
    require_named_servers()  # before minutes are spent on the data
    prepared = prepare(spec, home)
    unfinished = options.folder
    if unfinished is not None:
        require_resumable(unfinished, spec, prepared.fingerprint)
    elif not options.start_new:
        unfinished = find_unfinished(home, spec, prepared.fingerprint, asked=options.resume)
        if unfinished in sources:  # a warm start from an unfinished sweep does not resume it
            unfinished = None
    if unfinished is not None:
        other = " (--new starts another sweep instead)" if options.folder is None else ""
        kept = "; it keeps the warm start that it began with" if sources else ""
        print(f"going on with {unfinished.name}{other}{kept}", file=sys.stderr)
    warm = None
    if earlier and unfinished is None:
        found = make_warm_start(earlier, spec, prepared.fingerprint)
        warm = found.guesses
        print("\n".join(found.lines), file=sys.stderr)
    return PlannedSweep(prepared, options, unfinished, warm)


def require_result(result: SweepResult) -> None:
    """Raise SweepError, with the reason, if a sweep has no result or was suspended."""
    if not result.leaderboard:
        reason = result.failed[0].reason if result.failed else result.ended_by or "no trial ran"
        raise SweepError(f"no trial of {result.id} has a result: {reason}")
    if result.suspended:
        raise SweepError(f"{result.id} was suspended; the same command goes on. {result.ended_by}")
