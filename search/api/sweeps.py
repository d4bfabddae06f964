"""Sweeps from Python: start one, open one, and what it has found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from binsweep.data.errors import UserError
from binsweep.search.api.session import session
from binsweep.search.workflows.home import home_folder

if TYPE_CHECKING:  # these imports take seconds
    import pandas as pd

    from binsweep.search.history.sweep_history import SweepHistory
    from binsweep.search.spec.sweep_spec import SweepSpec
    from binsweep.search.steering.request import Kind
    from binsweep.search.workflows.launch import LaunchOptions
    from binsweep.search.workflows.steer import Answer
    from binsweep.tracking.promotion.judge import PromotionDecision

RUNNERS = ("ray", "local")
Place = str | Path


@dataclass(frozen=True)
class BestTrial:
    """The best trial: its value at its best `epoch`, with all metrics of that epoch.

    `checkpoint` is the file or folder of that epoch's weights; None where none was kept.
    """

    trial: int
    value: float
    epoch: int
    params: dict[str, Any]
    metrics: dict[str, float]
    checkpoint: Path | None


class Sweep:
    """A sweep, running or ended. Everything is read from its files when it is asked for."""

    def __init__(self, folder: Path, promotion: PromotionDecision | None = None) -> None:
        """`folder` is that of the sweep; `promotion` the decision that ended it, if it was asked for."""
        self.folder, self.promotion = folder, promotion
        self._read: tuple[int, SweepHistory] | None = None

    @property
    def id(self) -> str:
        """Its name and number, such as abid-3."""
        return self.folder.name

    @property
    def status(self) -> str:
        """running, finished, or unfinished: no process runs it, and it can be resumed."""
        return self._history().status

    @property
    def ended_by(self) -> str:
        """What ended it: the limit of its budget, or the reason why it is unfinished; empty while it runs."""
        return self._history().ended_by

    @property
    def spec(self) -> dict[str, Any]:
        """Its specification with all defaults."""
        return self._history().spec.raw

    @property
    def leaderboard(self) -> pd.DataFrame:
        """The trials with a result, best first: trial, metric, epoch, state, and the searched values."""
        from binsweep.search.api.frames import leaderboard_frame

        return leaderboard_frame(self._history())

    @property
    def trials(self) -> pd.DataFrame:
        """All trials by their number, failed ones too, with the reasons why each began and ended."""
        from binsweep.search.api.frames import trials_frame

        return trials_frame(self._history())

    @property
    def history(self) -> pd.DataFrame:
        """The metrics of each epoch of each trial: trial, epoch, and a column for each metric."""
        from binsweep.search.api.frames import epochs_frame

        return epochs_frame(self.folder)

    @property
    def best(self) -> BestTrial:
        """The best trial. Raises UserError if no trial has a result yet."""
        from binsweep.search.execution.kinds import kind_of
        from binsweep.search.history.run_keys import trial_key

        history = self._history()
        if not history.leaders:
            raise UserError(f"no trial of {self.id} has a result", "look at `trials` for what became of them")
        best = history.leaders[0]
        assert best.value is not None
        checkpoint = kind_of(history.spec).best_checkpoint(self.folder / trial_key(best.number))
        kept = checkpoint if checkpoint.exists() else None
        return BestTrial(best.number, best.value, best.epoch, dict(best.params), dict(best.best), kept)

    def report(self, out: Place | None = None) -> Path:
        """Write the report, one HTML page, to `out` or into the sweep's folder; returns its path."""
        from binsweep.data.output_path import require_page
        from binsweep.search.report.sweep_report import write_report

        page = None if out is None else Path(out).expanduser()
        if page is not None:
            require_page(page)
        with session():
            return write_report(self.folder, out=page)

    def promote(self, dry_run: bool = False, approved: bool = False) -> PromotionDecision:
        """Test the best model; make it champion if it is better. Returns the decision, with `promoted` and `reason`.

        With `dry_run` nothing is registered. `approved` gives the approval that register.gate.approval requires.
        """
        from binsweep.search.workflows.promote import promote_sweep
        from binsweep.tracking.mlflow_server.embedded import tracking_server

        with session(), tracking_server(self._home) as uri:
            return promote_sweep(self.id, self._home, uri, approved, dry_run)[1]

    def enqueue(
        self, params: Mapping[str, Any] | None = None, *, like: int | None = None, **values: Any
    ) -> Answer:
        """Let the sweep try a configuration next: a value for every searched parameter, in `params` or as keyword
        arguments, or with `like` the changes to that trial's.

        This and the other requests below are for a sweep that runs in any process, also in another thread of this one.
        They are kept if none runs it, and happen when it goes on. Each returns the sweep's answer, and raises UserError
        with the reason where it breaks the sweep's rules.
        """
        return self._ask("enqueue", like, {**(params or {}), **values})

    def stop_trial(self, trial: int) -> Answer:
        """Stop a trial after the epoch in progress; what it has reached counts."""
        return self._ask("stop-trial", trial)

    def pin(self, trial: int) -> Answer:
        """Train a trial to its end, whatever the strategy thinks of it."""
        return self._ask("pin", trial)

    def unpin(self, trial: int) -> Answer:
        """Let the strategy decide again about a trial that was pinned."""
        return self._ask("unpin", trial)

    def change_budget(self, **limits: Any) -> Answer:
        """Change limits of the budget: `minutes=90`, or `minutes="+30"` for 30 more than now."""
        return self._ask("budget", None, limits)

    def narrow(self, parts: Mapping[str, Any] | None = None, **more: Any) -> Answer:
        """Search less of the space from now on: `lr=(1e-4, 1e-2)`, `backbone=["resnet18", "resnet34"]`."""
        return self._ask("narrow", None, {**(parts or {}), **more})

    def pause(self) -> Answer:
        """Pause the sweep: running trials end their epoch and wait; `unpause` lets it go on."""
        return self._ask("pause")

    def unpause(self) -> Answer:
        """Let the sweep go on after `pause`, in the process that runs it; `resume` is for one that no process runs."""
        return self._ask("resume")

    def _ask(self, kind: Kind, trial: int | None = None, values: Mapping[str, Any] | None = None) -> Answer:
        from binsweep.search.spec.python_spec import plain_values
        from binsweep.search.steering.request import Request
        from binsweep.search.workflows.steer import steer

        return steer(self.folder, Request(kind, trial, plain_values(values or {})))

    def resume(
        self,
        *,
        runner: Literal["ray", "local"] = "ray",
        address: str | None = None,
        promote: bool = False,
        profile: bool = False,
        set: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> Sweep:
        """Go on with this sweep, finished or not, also with a larger budget: `resume(budget={"trials": 40})`.

        Options are those of `binsweep.sweep`. Raises UserError if the sweep cannot be resumed, such as because its
        data has changed since.
        """
        from binsweep.search.history.sweep_state import load_state
        from binsweep.search.spec.python_spec import spec_from_python
        from binsweep.search.workflows.launch import LaunchOptions

        _check_runner(runner, address)
        with session():
            spec = spec_from_python(load_state(self.folder)["spec"], sections, set or {})
            options = LaunchOptions(runner, folder=self.folder, then_promote=promote, profile=profile)
            return _run(spec, self._home, options, address)

    @property
    def _home(self) -> Path:
        return self.folder.parent.parent

    def _history(self) -> SweepHistory:
        """The history, read again only if it may have changed: an ended sweep's state file is the last to change."""
        from binsweep.search.history.run_log_reader import read_history
        from binsweep.search.history.sweep_state import STATE

        written = (self.folder / STATE).stat().st_mtime_ns
        if self._read is None or self._read[0] != written or self._read[1].status == "running":
            self._read = written, read_history(self.folder)
        return self._read[1]

    def __repr__(self) -> str:
        from binsweep.search.report.status import format_lines

        return "\n  ".join(format_lines(self._history()))

    def _repr_html_(self) -> str:
        from binsweep.search.api.frames import as_html

        return as_html(self._history())


def sweep(
    spec: Place | Mapping[str, Any],
    *,
    home: Place | None = None,
    runner: Literal["ray", "local"] = "ray",
    address: str | None = None,
    resume: bool = False,
    new: bool = False,
    warm_start: str | Sweep | Sequence[str | Sweep] = (),
    promote: bool = False,
    profile: bool = False,
    set: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Sweep:
    """Run a sweep, or resume it if it was interrupted, as `binsweep sweep` does; returns it when it has ended.

    `spec` is the path of a YAML file, or a dict with the same keys; a dict's paths are relative to the working
    directory, and `trainer` may be a function of a module. Keyword arguments named like sections change the spec:
    `budget={"trials": 8}` replaces that key of the section and leaves the others, and `set={"register.gate.approval":
    True}` sets dotted keys at any depth. `home` is where everything is stored (default: BINSWEEP_HOME, or .binsweep).
    `address` is that of a Ray cluster; `resume`, `new`, `warm_start`, `promote` and `profile` are as on the command
    line.

    Raises UserError for what the command line refuses with exit code 2, and SweepError if no trial has a result or the
    sweep was suspended. After KeyboardInterrupt the same call goes on with the sweep.
    """
    from binsweep.search.spec.python_spec import spec_from_python
    from binsweep.search.workflows.launch import LaunchOptions, check_options

    earlier = [warm_start] if isinstance(warm_start, str | Sweep) else list(warm_start)
    names = [one.id if isinstance(one, Sweep) else one for one in earlier]
    check_options(resume, new, bool(names), address is not None and runner == "local")
    _check_runner(runner, address)
    with session():
        loaded = spec_from_python(spec, sections, set or {})
        options = LaunchOptions(
            runner,
            resume=resume,
            start_new=new,
            warm_starts=names,
            then_promote=promote,
            profile=profile,
        )
        return _run(loaded, home_folder(home), options, address)


def open(sweep: str, home: Place | None = None) -> Sweep:
    """The sweep of an id, or the newest one of a name. Raises UserError if there is none."""
    from binsweep.search.history.sweep_state import find_folder

    return Sweep(find_folder(home_folder(home), sweep))


def _check_runner(runner: str, address: str | None) -> None:
    if runner not in RUNNERS:
        raise UserError(f"runner: must be ray or local, got {runner!r}", "local runs trials in this process")
    if runner == "local" and address is not None:
        raise UserError("address and runner='local' exclude one another", "omit one of them")


def _run(spec: SweepSpec, home: Path, options: LaunchOptions, address: str | None) -> Sweep:
    """Run a sweep on a Ray of its own, or on the cluster at `address`, and promote its best if that is asked for."""
    from dataclasses import replace

    from binsweep.search.workflows.launch import plan_sweep, require_result
    from binsweep.search.workflows.promote import promote_sweep
    from binsweep.tracking.mlflow_server.embedded import tracking_server

    with ExitStack() as stack:
        if address is not None:
            from binsweep.search.ray_backend.runner import join_ray

            options = replace(options, nodes=stack.enter_context(join_ray(address)))
        plan = plan_sweep(spec, home, options)
        uri = stack.enter_context(tracking_server(home))
        try:
            result = plan.run(uri)
        except KeyboardInterrupt:
            print("interrupted: the same call goes on with the sweep", file=sys.stderr)
            raise
        require_result(result)
        decision = None
        if options.then_promote:
            _, decision = promote_sweep(result.id, home, uri, in_budget=True)
    return Sweep(result.folder, decision)
