"""Records a sweep in MLflow through the run log: a parent run, and a child run for each trial."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import yaml

from binsweep.data.atomic_write import sync_file
from binsweep.models.health_rules import HealthFinding
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.health import read_findings, write_table
from binsweep.search.execution.kinds import kind_of
from binsweep.search.execution.photo_trial import TRACE
from binsweep.search.execution.trial import ERROR
from binsweep.search.execution.trial_record import ENDED, TrialRecord
from binsweep.search.history.decisions import DECISIONS
from binsweep.search.history.run_keys import SWEEP, trial_key
from binsweep.search.recording.training_records import TrainingRecords
from binsweep.search.spec.objective import pareto_front
from binsweep.search.spec.schema import MAX_FINALISTS
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.steering.request import AnsweredRequest
from binsweep.search.terminal.format import format_duration, format_value
from binsweep.tracking.evaluation.figures import write_csv
from binsweep.tracking.run_tags import environment_tags
from binsweep.tracking.runlog.run_log import RunLog

log = logging.getLogger(__name__)
DESCRIPTION = "mlflow.note.content"  # the tag that the MLflow UI shows as a run's description
MIN_REFRESH_SECONDS = 30.0  # between two updates of the report
MAX_REFRESH_LOAD = 0.05  # of one core, by updates of the report
MAX_SILENT_SECONDS = 2.0  # at the end of a sweep, before the user is told what it waits for
MAX_DATA_REPORT_SECONDS = 60.0  # to wait for the data report; for large data it takes minutes
MAX_KEPT_CHECKPOINTS = MAX_FINALISTS  # in the sweep's folder; the tracking server has all of them


class Recorder:
    """A listener of the controller. Its calls append to the run log's spool and return at once.

    Figures are drawn in a background thread, so that no trial waits for them.
    """

    def __init__(
        self,
        runlog: RunLog,
        spec: SweepSpec,
        sweep_id: str,
        training: TrainingRecords,
        folder: Path,
        controller: Controller,
        slots: int = 1,
    ) -> None:
        """`slots` is the number of trials that run at once."""
        self._controller, self._slots = controller, slots
        self._log, self._spec, self._training, self._folder = runlog, spec, training, folder
        self._sweep_id = sweep_id
        self._best: float | None = None
        self._n_ended = 0
        self._figure_pool = ThreadPoolExecutor(1, "figures")
        self._pending: list[Future[None]] = []
        # A daemon, so that the process can end before it: for large data it takes minutes.
        self._data_report = threading.Thread(target=self._report_data, name="data-report", daemon=True)
        self._sweep_report = threading.Thread(target=self._refresh_report, name="sweep-report", daemon=True)
        self._stopped = threading.Event()
        self._interrupted = False
        self._tags = {**environment_tags(), **training.tags, "sweep": sweep_id}
        self._kind = kind_of(spec)

    def sweep_started(self) -> None:
        """Open the parent run with the resolved spec and the data set; complete the runs of ended trials."""
        self._open_parent()
        controller = self._controller
        best = controller.leaderboard()
        self._best = best[0].value if best else None
        ended = [trial for trial in controller.trials.values() if trial.state in ENDED]
        self._n_ended = len(ended)
        for trial in ended:
            # The process ended after the study recorded its end and before the run did, or before its figures.
            if self._log.ended_as(trial_key(trial.number)) != _status(trial) or not self._has_figures(trial):
                self._note_end(trial)
        for trial in controller.trials.values():
            if trial.state not in ENDED:
                self._catch_up(trial)
        self._note_best()
        self._sweep_report.start()

    def _catch_up(self, trial: TrialRecord) -> None:
        """Record what only the study has of an interrupted trial: its start, if the process was killed just then, and,
        by its own files, epochs that a power cut has taken from the run log."""
        key = trial_key(trial.number)
        known = self._log.recorded(key)
        if self._log.has_started(key) and known.issuperset(range(1, trial.epochs_done + 1)):
            return
        self.trial_started(trial)
        for epoch, metrics in enumerate(self._kind.history(trial.folder)[: trial.epochs_done], 1):
            self.epoch_done(trial, epoch, metrics)
        self.trial_suspended(trial, "a power cut" if trial.epochs_done else "its process was killed")

    def _open_parent(self) -> None:
        spec = self._spec
        tags = {**self._tags, "slots": str(self._slots), "seed": str(spec.search.seed)}
        tags["binsweep.kind"] = "sweep"
        tags |= self._limits()
        params = {
            "sampler": spec.search.sampler,
            "stopping": spec.search.stopping,
            "metric": spec.metric,
            "goal": spec.goal,
            "source": spec.source,
        }
        text = f"Sweep `{self._sweep_id}`: {spec.goal} {spec.metric} over {', '.join(spec.space)}."
        self._log.start_run(SWEEP, self._sweep_id, None, tags, params, text)
        self._log_dataset(SWEEP)
        file = self._folder / "spec.yaml"
        file.write_text(yaml.safe_dump(spec.raw, sort_keys=False))
        self._log.artifact(SWEEP, file)
        for path in self._training.write_inputs(self._folder):
            self._log.artifact(SWEEP, path, path.name if path.is_dir() else "")
        self._data_report.start()

    def _report_data(self) -> None:
        try:
            for file in self._training.write_data_report(self._folder):
                self._log.artifact(SWEEP, file, "data")
        except Exception:  # a failed report must not end the sweep
            if not (self._interrupted or self._stopped.is_set()):  # else nothing waits for it
                log.exception("data report of %s", self._sweep_id)

    def _refresh_report(self) -> None:
        pause = MIN_REFRESH_SECONDS
        while not self._stopped.wait(pause):
            pause = max(MIN_REFRESH_SECONDS, self._report_sweep() / MAX_REFRESH_LOAD)

    def _report_sweep(self, ended_by: str = "") -> float:
        """Write the sweep's report and log it; returns the CPU seconds that it took."""
        start = time.thread_time()
        try:
            from binsweep.search.report.sweep_report import (  # takes a second to import
                describe,
                write_report,
            )

            self._log.artifact(SWEEP, write_report(self._folder, ended_by))
            page = self._log.page(SWEEP)
            link = f"[Report]({page}/artifacts/report.html)\n\n" if page else ""
            self._log.tags(SWEEP, {DESCRIPTION: link + describe(self._folder, ended_by)})
        except Exception:  # a failed report must not end the sweep
            if not self._interrupted:
                log.exception("report of %s", self._sweep_id)
        return time.thread_time() - start

    def _log_dataset(self, key: str) -> None:
        if (dataset := self._training.dataset()) is not None:
            digest = dataset.fingerprint[:32]
            self._log.dataset(key, self._spec.name, digest, dataset.source, "training", dataset.summary)

    def trial_started(self, trial: TrialRecord) -> None:
        tags = {
            **self._tags,
            **self._training.trial_tags(trial),
            "seed": str(trial.settings.seed),
            "optuna.trial": str(trial.number),
            "threads": str(trial.threads),
            "workers": str(trial.resources.workers),
            "cpus": f"{trial.resources.cpus:g}",
            "gpus": f"{trial.resources.gpus:g}",
            "suggested_because": trial.suggested,
            **({"resumed_because": trial.resumed} if trial.resumed else {}),
            **({"last_epoch": str(trial.last_epoch)} if trial.last_epoch < trial.planned_epochs else {}),
            "binsweep.kind": "trial",
            "state": trial.state,
        }
        # Short enough for the UI's lists; the description and the parameters hold the rest.
        name = f"{trial.number:03d} {self._training.trial_name(trial)}"
        # MLflow's parameters never change: a trial that is shortened keeps the length of its configuration there.
        params = self._training.trial_params(trial)
        self._log.start_run(trial_key(trial.number), name, SWEEP, tags, params, _describe_params(trial))
        self._log_dataset(trial_key(trial.number))

    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None:
        self._log.metrics(trial_key(trial.number), epoch, metrics)

    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None:
        tags = {finding.name: f"since epoch {finding.epoch}: {finding.text}" for finding in found}
        self._log.tags(trial_key(trial.number), tags)

    def trial_suspended(self, trial: TrialRecord, reason: str) -> None:
        self._log.tags(trial_key(trial.number), {"state": trial.state, "halted_because": reason})

    def trial_ended(self, trial: TrialRecord) -> None:
        self._n_ended += 1
        if (
            trial.state != "failed"
            and trial.feasible
            and trial.value is not None
            and self._spec.objective.is_better(trial.value, self._best)
        ):
            self._best = trial.value
        self._note_best()
        self._note_end(trial)

    def request_answered(self, answered: AnsweredRequest) -> None:
        if answered.granted and answered.request.kind == "budget":
            self._log.tags(SWEEP, self._limits())

    def _limits(self) -> dict[str, str]:
        """Tags of the parent run: --resume and people may change the budget, and MLflow's parameters are final."""
        budget = self._controller.budget
        limits = {"trials": budget.trials, "minutes": budget.minutes}
        return {name: str(limit) for name, limit in limits.items() if limit is not None}

    def _note_best(self) -> None:
        if self._best is not None:
            # The step counts ended trials: they end out of order, and MLflow takes the highest step for the latest.
            self._log.metrics(SWEEP, self._n_ended, {f"best_{self._spec.metric}": self._best})

    def _note_end(self, trial: TrialRecord) -> None:
        key = trial_key(trial.number)
        state = f"{trial.state} after {trial.epochs_done} of {trial.last_epoch} epochs: {trial.reason}"
        warnings = [
            f"- {finding.name} since epoch {finding.epoch}: {finding.text}"
            for finding in read_findings(trial.folder)
        ]
        note = "\n\n".join([_describe_params(trial), state, "\n".join(warnings)]).strip()
        within_limits = str(trial.feasible).lower()
        tags = {
            "state": trial.state,
            "ended_because": trial.reason,
            "within_limits": within_limits,
            DESCRIPTION: note,
        }
        self._log.tags(key, tags)
        if trial.value is not None:
            best = {f"best_{name}": value for name, value in trial.metrics.items() if name.startswith("val_")}
            # Of a trial that diverged, the study does not keep the last epoch: noted again, it has the same step.
            step = max({trial.epochs_done, *self._log.recorded(key)})
            self._log.metrics(key, step, {**best, "best_epoch": float(trial.epoch)})
        self._pending.append(self._figure_pool.submit(self._close_trial, trial))

    def _has_figures(self, trial: TrialRecord) -> bool:
        return (
            self._training.has_results(trial.folder) or not self._kind.best_checkpoint(trial.folder).exists()
        )

    def _close_trial(self, trial: TrialRecord) -> None:
        key = trial_key(trial.number)
        try:
            self._write_artifacts(trial, key)
        except Exception:  # a failed figure must not end the sweep
            log.exception("artifacts of %s", key)
        self._log.end_run(key, _status(trial))
        self.prune()

    def _write_artifacts(self, trial: TrialRecord, key: str) -> None:
        error, best = trial.folder / ERROR, self._kind.best_checkpoint(trial.folder)
        if best.exists():
            self._log.artifact(key, best, "weights")  # first: it depends on nothing that could fail
        if error.exists():
            self._log.artifact(key, error)
        if trial.epochs_done:
            self._log.artifact(key, write_table(trial.folder, self._spec.health))
        if (trial.folder / TRACE).exists():
            self._log.artifact(key, trial.folder / TRACE, "profile")
        for path, folder in self._training.write_results(trial.folder):
            self._log.artifact(key, path, folder)

    def prune(self) -> None:
        """Keep the checkpoints of the best MAX_KEPT_CHECKPOINTS ended trials; remove others that the server has.

        Trials that have not ended do not count: they may still fail.
        """
        ended = [trial for trial in self._controller.leaderboard() if trial.state in ENDED]
        for trial in ended[MAX_KEPT_CHECKPOINTS:]:
            if self._log.delivered(trial_key(trial.number)):
                self._kind.remove_best(trial.folder)

    def sweep_interrupted(self, why: str, status: str) -> None:
        """Mark the open trials as interrupted, so that they can be resumed; pending figures are left for then."""
        self._interrupted = True
        self._stopped.set()
        self._figure_pool.shutdown(wait=True, cancel_futures=True)  # the figure in progress takes a second
        for trial in self._controller.trials.values():
            key = trial_key(trial.number)
            if trial.state not in ENDED:
                self._log.tags(key, {"state": "interrupted", "halted_because": why})
                self._log.end_run(key, "KILLED")
            elif self._log.ended_as(key) != _status(trial):
                # Its figures or weights are missing: the next process records its end.
                self._log.end_run(key, "KILLED")
        self._log.tags(SWEEP, {"ended_by": why})
        self._log.end_run(SWEEP, status)

    def sweep_ended(self, status: str) -> None:
        """Wait for the figures and, limited, for the data report; then close the parent run with the leaderboard."""
        self._wait_for_figures()
        self._wait_for_data_report()
        self._stopped.set()
        self._sweep_report.join()
        controller = self._controller
        file = self._folder / "leaderboard.csv"
        names = list(self._spec.space)
        has_levels = len(self._spec.level_epochs) > 1
        rows = [
            [place, t.number, t.value, t.epoch, *[t.level.name] * has_levels, t.state]
            + [t.params.get(name, "") for name in names]
            for place, t in enumerate(controller.leaderboard(), 1)
        ]
        head = ["place", "trial", self._spec.metric, "epoch", *["level"] * has_levels, "state", *names]
        write_csv(
            file, head, rows, durable=True
        )  # once the sweep counts as finished, nothing writes it again
        self._log.artifact(SWEEP, file)
        sync_file(self._folder / DECISIONS)
        self._log.artifact(SWEEP, self._folder / DECISIONS)
        if cost := self._spec.objective.cost_objective:
            self._write_front(cost)
        states = [trial.state for trial in controller.trials.values()]
        counts = {f"trials.{state}": str(states.count(state)) for state in ("completed", "stopped", "failed")}
        self._log.tags(SWEEP, {**counts, "ended_by": controller.ended_by or status})
        self._report_sweep(controller.ended_by or status)
        self._log.end_run(SWEEP, status)

    def _wait_for_figures(self) -> None:
        wait(self._pending, MAX_SILENT_SECONDS)
        if left := sum(not future.done() for future in self._pending):
            print(f"drawing the figures of {left} trial{'s' * (left > 1)}", file=sys.stderr, flush=True)
        for future in self._pending:
            future.result()
        self._figure_pool.shutdown()

    def _wait_for_data_report(self) -> None:
        self._data_report.join(MAX_SILENT_SECONDS)
        if self._data_report.is_alive():
            dataset = self._training.dataset()
            size = "" if dataset is None else f" of {dataset.size}"
            text = f"waiting up to {format_duration(MAX_DATA_REPORT_SECONDS)} for the data report{size}"
            print(text, file=sys.stderr, flush=True)
            self._data_report.join(MAX_DATA_REPORT_SECONDS)
        if self._data_report.is_alive():
            text = f"the sweep ends without it: `binsweep data report {self._spec.source}` writes it"
            print(text, file=sys.stderr, flush=True)

    def _write_front(self, cost: str) -> None:
        """Write the Pareto front of the metric and a cost."""
        file = self._folder / "pareto.csv"
        metric, names = self._spec.metric, list(self._spec.space)
        rows = [
            [t.number, t.value, t.metrics[cost], *(t.params.get(name, "") for name in names)]
            for t in pareto_front(self._controller.leaderboard(), lambda trial: trial.metrics.get(cost))
        ]
        write_csv(file, ["trial", metric, cost, *names], rows, durable=True)
        self._log.artifact(SWEEP, file)


def _status(trial: TrialRecord) -> str:
    return "FAILED" if trial.state == "failed" else "FINISHED"


def _describe_params(trial: TrialRecord) -> str:
    """The parameters of a trial as a sentence."""
    searched = ", ".join(f"{name} {format_value(value)}" for name, value in trial.params.items())
    return f"Trial {trial.number}: {searched}."
