"""Who hears of what: receivers in a spec and in a home, and sweeps that tell them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from own_sweeps import code_spec
from real_sweeps import run_here

from binsweep.data.errors import UserError
from binsweep.search.spec.parser import load_spec
from binsweep.search.workflows.notify import channels_of, decided
from binsweep.tracking.notifications import Channel, Mail
from binsweep.tracking.promotion.gate import RuleResult
from binsweep.tracking.promotion.judge import PromotionDecision

MAIL = {"to": ["ann@example.org"], "from": "sweeps@example.org", "server": "mail.example.org:587"}


def test_receivers_come_from_the_spec_and_from_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "https://hooks.example.org/SECRET")
    monkeypatch.setenv("PASSWORD", "SECRET")
    asked = [
        {"slack": "$HOOK", "on": ["failed"]},
        {"email": {**MAIL, "user": "ann", "password": "$PASSWORD"}},
    ]
    spec = load_spec(code_spec(tmp_path / "code", "told", 1, notify=asked))
    assert "SECRET" not in json.dumps(spec.raw)
    (tmp_path / "notify.yaml").write_text("notify: [{webhook: 'https://in.example.org/home'}]")
    assert channels_of(spec, tmp_path) == [
        Channel("slack", "https://hooks.example.org/SECRET", ("failed",)),
        Channel("email", Mail(("ann@example.org",), "sweeps@example.org", MAIL["server"], "ann", "SECRET")),
        Channel("webhook", "https://in.example.org/home"),
    ]
    monkeypatch.delenv("HOOK")
    with pytest.raises(UserError, match=r"notify\.0\.slack: the environment variable HOOK is not set"):
        channels_of(spec, tmp_path)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"slack": "https://hooks.example.org/SECRET"}, r"slack must be an environment variable, \$NAME"),
        ({"email": {**MAIL, "password": "1234"}}, r"email\.password must be an environment variable"),
        ({"on": ["ended"]}, "must name one of webhook, slack, teams, email, command, and has none"),
        ({"slack": "$A", "teams": "$B"}, "and has slack and teams"),
        ({"command": "true", "on": ["over"]}, r"notify\.0\.on\.0: must be 'ended', 'failed'"),
        ({"email": {**MAIL, "server": "http://mail"}}, r"notify\.0\.email\.server: must match"),
        ({"webhok": "$A"}, r"notify\.0\.webhok: unknown key"),
    ],
)
def test_an_unclear_receiver_is_named(tmp_path: Path, part: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_spec(code_spec(tmp_path / "code", "told", 1, notify=[part]))
    home = tmp_path / "home"
    home.mkdir()
    (home / "notify.yaml").write_text(yaml.safe_dump({"notify": [part]}))
    if "environment" not in told:  # a home's file may have secrets
        with pytest.raises(UserError, match=rf"notify\.yaml: who is notified is not clear(.|\n)*{told}"):
            channels_of(None, home)


def test_a_sweep_tells_how_it_ended_and_no_receiver_can_fail_it(server: str, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    asked = [{"command": f"cat >> {heard}; echo >> {heard}"}, {"command": "exit 7"}]
    where = {"BINSWEEP_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": server}
    spec = code_spec(tmp_path / "code", "telling", 2, notify=asked, fidelity={"epochs": 1})
    done = run_here("sweep", spec, "--runner", "local", **where)
    assert done.returncode == 0, done.stderr
    assert "notify: ended was not told to command: it ended with exit code 7" in done.stderr
    broken = code_spec(tmp_path / "code", "telling", 1, "def train(trial): 1 / 0", notify=asked[:1])
    assert run_here("sweep", broken, "--new", "--runner", "local", **where).returncode == 1
    ended, failed = (json.loads(line) for line in heard.read_text().splitlines())
    assert (ended["event"], ended["subject"]) == ("ended", "telling-1")
    assert (
        ended["title"].startswith("telling-1 ended: val_score 0.")
        and "2 trials have a result" in ended["text"]
    )
    assert set(ended["details"]) == {"reason", "failed_trials", "metric", "value", "trial", "params"}
    assert (failed["event"], failed["subject"]) == ("failed", "telling-2")
    assert "ZeroDivisionError" in failed["text"]


@pytest.mark.parametrize(
    ("promoted", "failed", "kind"),
    [(True, (), "champion"), (False, ("approval",), "approval"), (False, ("better", "approval"), None)],
)
def test_what_a_promotion_tells(promoted: bool, failed: tuple[str, ...], kind: str | None) -> None:
    rules = [RuleResult(name, name not in failed, f"why {name}") for name in ("better", "approval")]
    decision = PromotionDecision(
        "3", promoted, "why", rules, {"accuracy": 0.9}, {}, None, None, {}, 10, "f", [], "now", "ann"
    )
    event = decided("bins", "abid-1", decision)
    assert (event and event.kind) == kind
    assert event is None or event.title.startswith("bins version 3 ")
