"""Counting what a served model sees, without a server: bins, store, drift, true labels, and what a failure may cost."""

import base64
import hashlib
import io
import json
import re
import socket
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest
from binsweep.search.report.monitor_page import verdict, write_page
from binsweep.search.workflows.monitor import has_new_drift
from binsweep.tracking.monitoring import store as stores
from binsweep.tracking.monitoring import watcher as watchers
from binsweep.tracking.monitoring.drift import (
    Oddness,
    grouped,
    population_stability_index,
    reading,
)
from binsweep.tracking.monitoring.drift_test import ALPHA, drift_tests, homogeneity_p
from binsweep.tracking.monitoring.figures import ANSWER, CONFIDENCE, FIGURES, PhotoStats
from binsweep.tracking.monitoring.prometheus import metrics_text
from binsweep.tracking.monitoring.reference import Reference, build_reference
from binsweep.tracking.monitoring.shadow import Shadow, ShadowTask
from binsweep.tracking.monitoring.store import AnsweredPhoto, Block, Counts, Tally, WatchStore, store_path
from binsweep.tracking.monitoring.summary import live_scores, summarize
from binsweep.tracking.monitoring.truths import parse_feedback, read_truths, wilson_interval
from binsweep.tracking.monitoring.watcher import Watcher

PATIENCE = 30.0


def jpeg(shade: int, side: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), shade, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def answers(labels: list[int | str], errors: list[str] | None = None) -> pd.DataFrame:
    name = "label" if isinstance(labels[0], str) else "count"
    rows = [{name: label, "confidence": 0.75, "error": ""} for label in labels]
    rows += [{name: None, "confidence": None, "error": error} for error in errors or []]
    return pd.DataFrame(rows, dtype=object)


def encoded(photos: list[bytes]) -> list[str]:
    return [base64.b64encode(photo).decode() for photo in photos]


def watched(
    folder: Path, photos: list[bytes], labels: list[int | str], reference: Reference | None = None
) -> Watcher:
    """A watcher that has counted these answers into a store."""
    watcher = Watcher(WatchStore(folder / "watch.db"), "1", lambda: reference, keep_thumbnails=True)
    watcher.start()
    watcher.answered(encoded(photos), answers(labels))
    watcher.request_done(200, 0.04)
    assert watcher.flush(PATIENCE)
    return watcher


def sample(dice: np.random.Generator, photos: int, darker: float = 0.0) -> Counts:
    """The bins of photos whose figures are drawn from distributions of usual shapes."""
    values = {
        "brightness": dice.normal(120 - darker, 30, photos),
        "sharpness": dice.lognormal(5, 1, photos),
        CONFIDENCE: 1 - dice.beta(1, 6, photos) ** 2,
    }
    counts: Counts = {}
    for name, drawn in values.items():
        places, times = np.unique(
            np.searchsorted(FIGURES[name].edges, drawn, side="right"), return_counts=True
        )
        counts[name] = {str(p): int(n) for p, n in zip(places, times, strict=True)}
    labels, times = np.unique(dice.choice(5, photos, p=[0.02, 0.28, 0.4, 0.25, 0.05]), return_counts=True)
    counts[ANSWER] = {str(label): int(n) for label, n in zip(labels, times, strict=True)}
    return counts


def blocks(dice: np.random.Generator, many: int, darker: float = 0.0, first: int = 1) -> list[Block]:
    each = stores.BLOCK_PHOTOS
    return [Block(n, n, n + 1, each, sample(dice, each, darker)) for n in range(first, first + many)]


def test_without_drift_a_false_alarm_over_many_looks_is_as_rare_as_stated() -> None:
    """200 models, each looked at 10 times: an alarm in any figure at any look counts. With a p of 0.05 for each look
    and figure nearly all of them would alarm."""
    dice, runs, alarms, naive = np.random.default_rng(3), 200, 0, 0
    for _ in range(runs):
        reference, seen = sample(dice, 400), blocks(dice, 10)
        alarms += any(test.drifts for test in drift_tests(reference, seen).values())
        naive += any(
            homogeneity_p(name, reference[name], b.counts[name]) < ALPHA for b in seen for name in reference
        )
    assert alarms <= ALPHA * runs
    assert naive > 0.8 * runs


def test_drift_is_found_at_the_look_after_it_and_a_small_one_once_there_are_enough_photos() -> None:
    dice = np.random.default_rng(0)
    reference = sample(dice, 1000)
    sudden = drift_tests(reference, [*blocks(dice, 4), *blocks(dice, 2, 40, first=5)])
    assert sudden["brightness"].first == 5 and not sudden["sharpness"].drifts
    small = drift_tests(reference, blocks(dice, 24, 6))["brightness"]
    assert small.first is not None and small.first > 1
    # An open block is no look yet.
    half = Block(1, 0, 1, stores.BLOCK_PHOTOS - 1, sample(dice, 249, 100))
    assert drift_tests(reference, [half])["brightness"].look is None


def test_a_value_that_no_validation_photo_had_is_drift() -> None:
    """All validation photos have one size: every merging of bins around it must keep the new one apart."""
    usual, other = FIGURES["width"].bin_of(500), FIGURES["width"].bin_of(640)
    reference, seen = {str(usual): 300}, {str(usual): 200, str(other): 50}
    assert homogeneity_p("width", reference, seen) < 1e-6
    index = population_stability_index("width", reference, seen)
    assert index is not None and reading(index, 250) == "large"
    assert homogeneity_p("width", reference, {str(usual): 250}) == 1.0


def test_the_index_is_the_published_one() -> None:
    """Siddiqi's sum for two groups with shares 0.6 and 0.4 against 0.5 and 0.5, but for half a photo in each."""
    expected = {'"a"': 6000, '"b"': 4000}
    index = population_stability_index(ANSWER, expected, {'"a"': 5000, '"b"': 5000})
    assert index == pytest.approx(0.1 * np.log(0.6 / 0.5) - 0.1 * np.log(0.4 / 0.5), abs=1e-4)
    assert population_stability_index(ANSWER, expected, {}) is None
    assert [reading(value, 500) for value in (0.09, 0.1, 0.25)] == ["none", "some", "large"]
    assert reading(0.3, 50) == reading(None, 0) == "too few photos"
    table = np.array([[1, 1, 5, 5, 1], [0, 2, 3, 5, 0]])
    assert grouped(table, table.sum(axis=0).astype(float), 8, ordered=True).tolist() == [[7, 6], [5, 5]]


def test_the_oddest_photo_is_furthest_from_the_validation_photos() -> None:
    reference = {
        "brightness": {str(FIGURES["brightness"].bin_of(v)): 100 for v in (100, 110, 120)},
        CONFIDENCE: {str(FIGURES[CONFIDENCE].bin_of(v)): 100 for v in (0.6, 0.8, 0.999)},
    }
    oddness = Oddness(reference)

    def of(brightness: float, confidence: float) -> tuple[float, str]:
        stats = PhotoStats(brightness, 50.0, 10, 10)
        return oddness.of(AnsweredPhoto(b"", 0.0, "1", confidence, 10, stats))

    assert of(10, 0.8)[1] == "brightness" and of(10, 0.8) > of(60, 0.8) > of(110, 0.8)
    assert of(110, 0.3)[1] == CONFIDENCE
    assert of(110, 0.99999)[0] <= of(110, 0.7)[0]  # being sure is not odd


def test_everything_that_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("MAX_PHOTOS", 5), ("MAX_TRUTHS", 3), ("MAX_BLOCKS", 2), ("BLOCK_PHOTOS", 2)):
        monkeypatch.setattr(stores, name, limit)
    monkeypatch.setattr(stores, "MAX_VERSIONS", 2)
    monkeypatch.setattr(stores, "MAX_THUMBNAILS", 1)
    store = WatchStore(tmp_path / "watch.db")
    for version in ("1", "2", "3"):
        for number in range(6):
            tally = Tally(measured=1)
            digest = hashlib.sha256(f"{version} {number}".encode()).digest()
            tally.add("brightness", 3, 12.5)
            tally.photos.append(AnsweredPhoto(digest, number, "2", 0.5, 10, PhotoStats(12.5, 1, 8, 8)))
            tally.thumbnails.append((digest, number, b"jpeg"))
            store.add(version, tally)
            store.add_truths([(digest, "2")])
    assert store.versions() == ["3", "2"]
    assert store.totals("3")["brightness"] == {"3": (6, 75.0)}
    assert [(block.number, block.measured) for block in store.blocks("3")] == [(2, 2), (3, 2)]
    assert len(store.photos("3")) == 5 and not store.photos("2")
    assert len(store.judged("3")) == 3 and len(store.thumbnails("3")) == 1


def test_the_version_that_was_served_last_is_known_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = WatchStore(tmp_path / "watch.db"), time.time()
    store.add("1", Tally())
    store.add("2", Tally())
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    store.add("1", Tally())
    assert store.versions() == ["1", "2"]
    (block,) = store.blocks("1")
    assert block.began < block.ended


def test_several_servers_add_to_one_store(tmp_path: Path) -> None:
    WatchStore(tmp_path / "watch.db")

    def add() -> None:
        store = WatchStore(tmp_path / "watch.db")
        for _ in range(20):
            tally = Tally(measured=30)
            tally.add("brightness", 1, 1.0, times=30)
            store.add("1", tally)

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    store = WatchStore(tmp_path / "watch.db")
    assert store.totals("1")["brightness"]["1"][0] == 1800
    found = store.blocks("1")
    assert sum(block.measured for block in found) == 1800 and all(b.measured >= 250 for b in found[:-1])


def test_a_store_of_another_format_is_refused_and_names_may_be_odd(tmp_path: Path) -> None:
    path = store_path(tmp_path, "bill's/.. counter")
    assert path.parent.parent == tmp_path / "serving"
    WatchStore(path)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(UserError, match="has format 9"):
        WatchStore(path)


def test_answers_are_counted_and_told_in_prometheus_format(tmp_path: Path, manifest: Manifest) -> None:
    items = manifest.split("validation")
    reference = build_reference(items, [(item.label, 0.9) for item in items])
    assert reference.photos == len(items)
    watcher = watched(tmp_path, [jpeg(20), jpeg(240), b"no photo"], [1, 2, 2], reference)
    watcher.answered(encoded([b"bad"]), answers([1], ["not an image"])[1:])
    assert watcher.flush(PATIENCE)
    families = {
        one.name: one for one in text_string_to_metric_families(metrics_text(watcher, 'a "good"\\one'))
    }
    values = {
        (
            sample.name,
            sample.labels.get("state") or sample.labels.get("answer") or sample.labels.get("le"),
        ): sample
        for family in families.values()
        for sample in family.samples
    }
    assert values["binsweep_photos_total", "answered"].value == 3
    assert values["binsweep_photos_total", "measured"].value == 2
    assert values["binsweep_photos_total", "error"].value == 1
    assert values["binsweep_answers_total", "2"].value == 2
    assert values["binsweep_photo_brightness_bucket", "+Inf"].value == 2
    assert values["binsweep_request_seconds_count", None].value == 1
    assert {one.labels["figure"] for one in families["binsweep_population_stability_index"].samples} == {
        *FIGURES,
        ANSWER,
    }
    (failures,) = families["binsweep_watch_failures"].samples
    assert failures.value == 0 and failures.labels == {"model": 'a "good"\\one', "version": "1"}
    watcher.close()
    # Another server of the version, as after a restart, goes on from there.
    again = watched(tmp_path, [jpeg(20)], [1])
    assert again.store.totals("1")["photos"]["answered"] == (4, 0.0)
    again.close()


def test_counting_that_fails_reaches_no_caller_and_is_told(tmp_path: Path) -> None:
    store = WatchStore(tmp_path / "watch.db")

    def no_reference() -> Reference | None:
        raise OSError("MLflow is away")

    watcher = Watcher(store, "1", no_reference)
    watcher.start()
    with sqlite3.connect(store.path) as database:
        database.execute("DROP TABLE counts")
    watcher.answered(["%%%"], answers([1]))
    watcher.answered(encoded([jpeg(9)]), answers([1]))
    watcher.request_done(200, 0.1)
    assert watcher.flush(PATIENCE)
    assert watcher.failures == 3 and "no such table: counts" in watcher.failure
    watcher.close()


def test_what_waits_is_bounded_and_a_busy_server_measures_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "MAX_WAITING_BYTES", 3000)
    monkeypatch.setattr(watchers, "MEASURE_SHARE", 0.0)
    monkeypatch.setattr(watchers, "MAX_CREDIT_SECONDS", 1e-9)
    began, go = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        go.wait(PATIENCE)

    watcher = Watcher(WatchStore(tmp_path / "watch.db"), "1", slow)  # type: ignore[arg-type, return-value]
    watcher.start()
    assert began.wait(PATIENCE)
    small = jpeg(9)
    for _ in range(10):
        watcher.answered(encoded([small]), answers([1]))
    go.set()
    assert watcher.flush(PATIENCE)
    photos = {place: times for place, (times, _) in watcher.store.totals("1")["photos"].items()}
    fit = 3000 // len(encoded([small])[0])
    assert photos["answered"] == fit and photos["missed"] == 10 - fit and photos["measured"] <= 1
    watcher.close()


def test_named_classes_are_watched_in_their_own_words(tmp_path: Path) -> None:
    photos = [jpeg(shade) for shade in range(60, 64)]
    counts = {name: {str(FIGURES[name].bin_of(60)): 50} for name in FIGURES}
    reference = Reference(50, {**counts, ANSWER: {'"ok"': 40, '"scratched <1>"': 10}})
    watcher = watched(tmp_path, photos, ["ok", "ok", "scratched <1>", "ok"], reference)
    body = [
        {"sha256": hashlib.sha256(photo).hexdigest(), "label": label}
        for photo, label in zip(photos, ["ok", "scratched <1>", "scratched <1>", "ok"], strict=True)
    ]
    rows = parse_feedback(json.dumps(body).encode(), "label")
    assert watcher.store.add_truths(rows) == 4
    summary = summarize(watcher.store, "1", reference)
    assert summary.live is not None and (summary.live.right, summary.live.photos) == (3, 4)
    assert summary.live.intervals["accuracy"] == pytest.approx((0.3006, 0.9544), abs=1e-3)
    assert verdict(summary).startswith("no verdict yet: 4 photos measured")
    figure = summary.figures[0]
    drifts = replace(summary, figures=[replace(figure, test=replace(figure.test, first=1))])
    assert not has_new_drift(summary, "") and has_new_drift(drifts, verdict(summary))
    assert not has_new_drift(drifts, verdict(drifts))
    write_page(tmp_path / "page.html", "parts", "1", summary, {"test.accuracy": "0.9"}, ["a note"])
    page = (tmp_path / "page.html").read_text()
    assert "scratched &lt;1&gt;" in page and "balanced accuracy" in page and "90.0%" in page
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(counts?|counting|items?|bins?|RMSE|MAE)\b", text), text
    assert page.count("data:image/jpeg;base64,") == 4 and "http" not in page
    watcher.close()


def test_true_labels_come_as_json_or_as_a_file_with_photos_or_hashes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    digest = hashlib.sha256(jpeg(1)).hexdigest()
    for text in ("path,count\na.jpg,3\n", f"note,sha256,count\nx,{digest.upper()},03\n"):
        (tmp_path / "truths.csv").write_text(text)
        assert read_truths(tmp_path / "truths.csv", "count") == [(bytes.fromhex(digest), "3")]
    assert parse_feedback(json.dumps([{"sha256": digest, "count": 3}]).encode(), None) == [
        (bytes.fromhex(digest), "3")
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"sha256": "ab", "count": 1}, "sha256 is 'ab', not 64 hexadecimal digits"),
        ({"sha256": "0" * 64}, "neither count nor label"),
        ({"sha256": "0" * 64, "count": 1, "label": "a"}, "both count and label"),
        ({"sha256": "0" * 64, "count": -1}, "count is -1, not a whole number from 0 on"),
        ({"sha256": "0" * 64, "count": True}, "count is True"),
        ({"sha256": "0" * 64, "count": 1.5}, "count is 1.5"),
        ({"sha256": "0" * 64, "label": "ok"}, "a label, and the model answers with a count"),
        ({"path": "a.jpg", "count": 1}, "sha256 is None"),  # a caller names no files of the server's machine
        ("text", "not a list of objects"),
    ],
)
def test_a_wrong_row_is_refused_with_its_place(row: object, said: str) -> None:
    good = {"sha256": "0" * 64, "count": 1}
    with pytest.raises(UserError) as mistake:
        parse_feedback(json.dumps([good, row]).encode(), "count")
    assert said in mistake.value.message
    if isinstance(row, dict):
        assert "row 2: " in mistake.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "its columns are nothing"),
        (b"sha256,true\n", "its columns are sha256, true"),
        (b"sha256,count\n", "no row"),
        (b"path,count\nnowhere.jpg,1\n", "truths.csv:2: nowhere.jpg: no such file"),
        (b"sha256,count\nxyz,1\n" * 8, "and "),
        (b"\xff\xfe", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "truths.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"truths\.csv") as mistake:
        read_truths(file, "count")
    assert said in mistake.value.message


def test_the_interval_of_a_share_is_wilsons() -> None:
    """Against the figures for 0 of 10, 10 of 10 and 81 of 263 (Newcombe, Statistics in Medicine 17, 1998)."""
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert live_scores([]) is None
    live = live_scores([("3", "3"), ("2", "3"), ("3", '"odd"')])
    assert live is not None and live.photos == 2 and live.scores["rmse"] == pytest.approx(0.5**0.5)


def test_a_challenger_that_is_slow_or_away_costs_the_caller_nothing(tmp_path: Path) -> None:
    """Its address takes connections and never answers: what waits for it is bounded, the rest is counted as missed."""
    store = WatchStore(tmp_path / "watch.db")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        shadow = Shadow(store, "1", ShadowTask("2", url, 1.0), False)
        shadow.start()
        began = time.monotonic()
        for _ in range(50):
            shadow.offer(encoded([jpeg(9)]), answers([1]))
        assert time.monotonic() - began < 5
    # Its connections end with the server: the request that it had has failed.
    deadline = time.monotonic() + PATIENCE
    while "shadow" not in store.totals("1"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    counted = {place: times for place, (times, _) in store.totals("1")["shadow"].items()}
    assert counted["failed"] >= 1 and counted["missed"] >= 40 and not store.challengers("1")
