"""Who hears of what: the receivers of a spec and of the home, and what they are told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from binsweep.data.errors import UserError, first_line
from binsweep.search.spec.parser import shape_problems
from binsweep.search.spec.schema import HomeNotifyFile, NotifyPart
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.spec.yaml_file import NotYaml, read_yaml
from binsweep.search.terminal.format import format_metric
from binsweep.tracking.notifications import Channel, Event, Mail, send

if TYPE_CHECKING:  # these imports take seconds
    from binsweep.search.workflows.sweep import SweepResult
    from binsweep.tracking.promotion.judge import PromotionDecision

HOME_FILE = "notify.yaml"


def channels_of(spec: SweepSpec | None, home: Path) -> list[Channel]:
    """The receivers that a spec and the home's notify.yaml name, with the values of environment variables.

    Raises UserError for mistakes in that file, and for a variable that is not set.
    """
    named = [(f"notify.{place}", part) for place, part in enumerate(spec.notify if spec else ())]
    file = home / HOME_FILE
    if file.exists():
        named += [(f"{file}: notify.{place}", part) for place, part in enumerate(_read(file).notify)]
    return [_channel(part, where) for where, part in named]


def _read(file: Path) -> HomeNotifyFile:
    try:
        return HomeNotifyFile.model_validate(read_yaml(file.read_bytes()).value)
    except ValidationError as error:
        problems = map(str, shape_problems(error, HomeNotifyFile))
        raise UserError("\n  ".join([f"{file}: who is notified is not clear", *problems])) from error
    except (NotYaml, OSError) as error:
        what = error.what if isinstance(error, NotYaml) else str(error)
        raise UserError(f"{file}: {what}", "docs/notify.md has an example") from error


def _channel(part: NotifyPart, where: str) -> Channel:
    kind, on = part.receiver, None if part.on is None else tuple(part.on)
    if part.email is not None:
        mail = part.email
        password = mail.password and _value_of(mail.password, f"{where}.email.password")
        return Channel(kind, Mail(tuple(mail.to), mail.from_, mail.server, mail.user, password), on)
    value = getattr(part, kind)
    return Channel(kind, value if kind == "command" else _value_of(value, f"{where}.{kind}"), on)


def _value_of(text: str, where: str) -> str:
    """The text, or the value of the environment variable that it names."""
    if not text.startswith("$"):
        return text
    value = os.environ.get(text[1:], "")
    if not value:
        raise UserError(
            f"{where}: the environment variable {text[1:]} is not set", "set it, or remove this receiver"
        )
    return value


def notify(event: Event, spec: SweepSpec | None, home: Path) -> None:
    """Send an event to whoever wants it. What goes wrong is printed: no sweep fails because of it."""
    try:
        failures = send(event, channels_of(spec, home))
    except UserError as error:
        failures = [first_line(error)]
    for line in failures:
        print(f"notify: {event.kind} was not told to {line}", file=sys.stderr)


def sweep_over(spec: SweepSpec, result: SweepResult) -> Event:
    """That a sweep has ended, or has been given up for a reason that a person can fix."""
    details: dict[str, Any] = {"reason": result.ended_by, "failed_trials": len(result.failed)}
    if result.suspended:
        waits = result.ended_by.startswith("disk")
        what = "waits for free disk space" if waits else "was suspended"
        text = f"{result.ended_by}\nThe same command goes on with it."
        return Event("waiting" if waits else "failed", result.id, f"{result.id} {what}", text, details)
    if not result.leaderboard:
        reason = result.failed[0].reason if result.failed else result.ended_by
        return Event(
            "failed", result.id, f"{result.id} has no result", f"No trial has a result: {reason}", details
        )
    best = result.leaderboard[0]
    value = format_metric(spec.metric, best.value)
    details |= {"metric": spec.metric, "value": best.value, "trial": best.number, "params": dict(best.params)}
    failed = f", {len(result.failed)} failed" if result.failed else ""
    text = (
        f"Best: trial {best.number}, {spec.metric} {value}. {len(result.leaderboard)} trials have a result{failed}.\n"
        f"It ended by {result.ended_by}."
    )
    return Event("ended", result.id, f"{result.id} ended: {spec.metric} {value}", text, details)


def sweep_broken(spec: SweepSpec, error: Exception) -> Event:
    """That a sweep has failed with an error; it can be resumed."""
    text = f"{first_line(error)}\nThe same command goes on with it."
    return Event("failed", spec.name, f"sweep {spec.name} failed", text, {"error": type(error).__name__})


def decided(model: str, sweep: str, decision: PromotionDecision) -> Event | None:
    """That a promotion has changed the champion, or that only a person's approval is missing; None for neither."""
    details = {
        "model": model,
        "version": decision.version,
        "sweep": sweep,
        "candidate": dict(decision.candidate),
    }
    name = f"{model} version {decision.version}"
    if decision.promoted:
        return Event("champion", model, f"{name} is champion", decision.reason, details)
    failed = [rule for rule in decision.rules if not rule.passed]
    if [rule.name for rule in failed] == ["approval"]:
        text = f"It passed every other rule. {failed[0].text}"
        return Event("approval", model, f"{name} waits for approval", text, details)
    return None


def rolled_back(model: str, version: str, reason: str) -> Event:
    """That an earlier champion is champion again."""
    details = {"model": model, "version": version}
    return Event("champion", model, f"{model} version {version} is champion again", reason, details)


def drifting(model: str, version: str, verdict: str, page: Path) -> Event:
    """That a served version sees other photos than those by which it was chosen."""
    details = {"model": model, "version": version, "page": str(page)}
    return Event("drift", model, f"{model} version {version}: {verdict}", f"The page: {page}", details)
