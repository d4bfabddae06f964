"""Health findings of the workers, and the actions of the sweep on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from binsweep.data.atomic_write import write_json
from binsweep.models.health_rules import RULES, HealthFinding, HealthRule, similar_across_runs

FINDINGS_FILE = "health.json"
TABLE_FILE = "health.csv"
LOSSES = {"train_loss", "val_loss"}  # by which trials are compared


def keep_findings(folder: Path, found: Sequence[HealthFinding]) -> None:
    """Add findings to a trial's health.json, atomically; the first finding of each rule stays."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {finding.rule: finding for finding in read_findings(folder)}
    merged = {**{finding.rule: finding for finding in found}, **known}
    write_json(folder / FINDINGS_FILE, [asdict(finding) for finding in merged.values()])


def read_findings(folder: Path) -> list[HealthFinding]:
    """The findings about a trial so far, of this process and earlier ones."""
    file = folder / FINDINGS_FILE
    return [HealthFinding(**finding) for finding in json.loads(file.read_text())] if file.exists() else []


def write_table(folder: Path, rules: Mapping[str, HealthRule]) -> Path:
    """Write a trial's health.csv: every health rule, and the profile rules that have a finding."""
    found = {finding.rule: finding for finding in read_findings(folder)}
    with (folder / TABLE_FILE).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["rule", "since_epoch", "seen", "action"])
        for finding in found.values():
            writer.writerow([finding.name, finding.epoch, finding.text, _action(rules, finding.rule)])
        for rule in RULES:
            if rule not in found:
                writer.writerow([f"health.{rule}", "", "nothing", _action(rules, rule)])
    return folder / TABLE_FILE


class HealthTracker:
    """Follows the health of a sweep's trials. `rules` configures which findings stop a trial or are ignored."""

    def __init__(self, rules: Mapping[str, HealthRule]) -> None:
        self._rules = rules
        self._known: dict[int, set[str]] = {}
        # By epoch: each trial's losses. Trials that differ only in the seed are compared, too.
        self._losses: dict[int, dict[int, Mapping[str, float]]] = {}

    def check(
        self, number: int, epoch: int, metrics: Mapping[str, float], folder: Path
    ) -> list[HealthFinding]:
        """The new findings about a trial; `metrics` are those of `epoch`."""
        others = self._losses.setdefault(epoch, {}) if metrics.keys() >= LOSSES else {}
        ignored = _action(self._rules, "similar_across_runs") == "ignore"
        elsewhere = {n: losses for n, losses in others.items() if n != number}
        if not ignored and (text := similar_across_runs(metrics, elsewhere)):
            keep_findings(folder, [HealthFinding("similar_across_runs", epoch, text)])
        others[number] = {loss: metrics[loss] for loss in LOSSES & metrics.keys()}
        known = self._known.setdefault(number, set())
        new = [finding for finding in read_findings(folder) if finding.rule not in known]
        known.update(finding.rule for finding in new)
        return new

    def stop_reason(self, found: Sequence[HealthFinding]) -> str:
        """Why the trial must stop; empty if it may continue."""
        stopping = (finding for finding in found if _action(self._rules, finding.rule) == "stop")
        return next((f"{finding.name}: {finding.text}" for finding in stopping), "")


def _action(rules: Mapping[str, HealthRule], name: str) -> str:
    return rules.get(name, HealthRule()).action
