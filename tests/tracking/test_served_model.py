"""A served counter over HTTP: every form of a request, its limits, and what no request may do to it."""

import codecs
import gzip
import json
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import requests
import torch
from fuzz import FORMS, JSON, encoded, photo, wrapped
from fuzz import requests as fuzzed
from mlflow.tracking import MlflowClient

from binsweep.data.decode import MAX_BYTES
from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.decoding import MAX_ROWS
from binsweep.models.engines.choice import choose_engine
from binsweep.models.engines.names import EngineName
from binsweep.models.network import CountingModel, CountingModelConfig
from binsweep.models.predictor import Predictor
from binsweep.tracking.registry.registration import register
from binsweep.tracking.serving.model_server import serve_model

pytestmark = pytest.mark.integration  # a server of its own, and thousands of requests
SECONDS = 60


@pytest.fixture(scope="module", params=get_args(EngineName))
def address(server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A counter with random weights, registered and served by each engine."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES["mobilenet_v2"]
    config = CountingModelConfig(
        "mobilenet_v2", "classify", (0, 1, 2), 64, architecture.mean, architecture.std
    )
    client = MlflowClient(server)
    name = f"served-by-{request.param}"
    run = client.create_run(client.create_experiment(name))
    predictor = Predictor([CountingModel(config)], flip=True, decoding="mean").eval()
    engine = choose_engine(request.param, predictor, np.zeros((2, 64, 64, 3), np.uint8))
    register(server, run.info.run_id, name, predictor, {}, engine)
    with serve_model(f"models:/{name}/1", server) as served:
        yield f"{served.url}/invocations"


def ask(address: str, body: bytes | Any, **headers: str) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(address, data=data, headers={"Content-Type": JSON, **headers}, timeout=SECONDS)


def refused(reply: requests.Response, *said: str) -> None:
    """400 with one line that says all of `said`."""
    assert reply.status_code == 400, reply.text
    answer = reply.json()
    assert "stack_trace" not in answer and "\n" not in answer["message"]
    for text in said:
        assert text in answer["message"]


def test_every_form_is_answered_alike(address: str) -> None:
    cells = [encoded(photo(kind)) for kind in ("JPEG", "PNG", "WEBP")]
    answers = [ask(address, wrapped(form, cells)).json()["predictions"] for form in FORMS]
    assert len(answers[0]) == 3 and all(answer == answers[0] for answer in answers)
    row = answers[0][0]
    assert row["model_version"] == "1" and row["error"] == "" and row["count"] in (0, 1, 2)
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert row["confidence"] == row["probabilities"][str(row["count"])]
    assert row["count"] == round(row["expected_count"])  # it decodes by the mean
    csv = requests.post(
        address, data=f"image\n{cells[0]}\n", headers={"Content-Type": "text/csv"}, timeout=SECONDS
    )
    assert csv.json()["predictions"][0] == row


def test_a_file_that_begins_with_a_byte_order_mark_is_read(address: str) -> None:
    good = ask(address, wrapped("instances", [encoded(photo())])).json()
    marked = codecs.BOM_UTF8 + json.dumps(wrapped("instances", [encoded(photo())])).encode()
    assert ask(address, marked).json() == good
    csv = codecs.BOM_UTF8 + f"image\r\n{encoded(photo())}\r\n".encode()
    reply = requests.post(address, data=csv, headers={"Content-Type": "text/csv"}, timeout=SECONDS)
    assert reply.json() == good


def test_a_bad_row_costs_no_other_its_answer_and_all_bad_is_refused(address: str) -> None:
    cells = [encoded(photo()), encoded(b"no photo"), "no base64!", ""]
    rows = ask(address, wrapped("dataframe_split", cells)).json()["predictions"]
    assert [bool(row["error"]) for row in rows] == [False, True, True, True]
    assert [row["count"] is None for row in rows] == [False, True, True, True]
    refused(
        ask(address, wrapped("dataframe_split", cells[1:])),
        "no readable image: row 1 of 3: not a JPEG, PNG, WebP, TIFF, AVIF or HEIC",
        "; row 2 of 3: not base64",
        "; row 3 of 3: empty file",
    )
    refused(ask(address, wrapped("inputs", [""] * 5)), "row 3 of 5: empty file (0 bytes); and 2 more")
    refused(ask(address, wrapped("inputs", ["no base64!"])), "no readable image: not base64")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_in_the_place_of_a_photo_is_told_as_nothing(address: str, form: str) -> None:
    (bad, good) = ask(address, wrapped(form, [None, encoded(photo())])).json()["predictions"]
    assert "got nothing (null)" in bad["error"] and not good["error"]


def test_the_reason_stands_in_the_answer_and_not_the_input(address: str) -> None:
    cell = encoded(photo())
    for body in (
        {"instances": [{"Image": cell}]},
        {"inputs": {"Image": [cell]}},
        {"dataframe_split": {"columns": ["Image"], "data": [[cell]]}},
    ):
        reply = ask(address, body)
        refused(reply, "Model is missing inputs ['image']")
        assert cell[:20] not in reply.text
    packed = ask(address, gzip.compress(json.dumps(wrapped("inputs", [cell])).encode()))
    refused(packed, "not UTF-8 text (compressed bodies are not supported)")
    loud = ask(address, wrapped("inputs", [cell]), **{"Content-Type": "Application/JSON; Charset=UTF-8"})
    assert loud.json() == ask(address, wrapped("inputs", [cell])).json()
    untyped = requests.Request("POST", address, data=b"{}").prepare()
    untyped.headers.pop("Content-Type", None)
    with requests.Session() as session:
        refused(session.send(untyped, timeout=SECONDS), "no Content-Type")


def test_limits_of_rows_bytes_and_pixels(address: str) -> None:
    refused(
        ask(address, wrapped("instances", [encoded(photo())] * (MAX_ROWS + 1))), "257 rows", str(MAX_ROWS)
    )
    refused(ask(address, wrapped("inputs", ["A" * (2 * MAX_BYTES)])), f"{MAX_BYTES:,} bytes")
    huge = bytearray(photo("PNG"))
    huge[16:24] = (100_000).to_bytes(4, "big") * 2
    good = encoded(photo())
    rows = ask(address, wrapped("inputs", [good, encoded(bytes(huge))])).json()["predictions"]
    assert not rows[0]["error"] and rows[1]["error"]


def test_two_thousand_odd_requests(address: str) -> None:
    """No 5xx, no stack trace, no hang, and the next good request is answered as before."""
    good = wrapped("dataframe_split", [encoded(photo())])
    before = ask(address, good).json()
    session = requests.Session()
    statuses: dict[int, int] = {}
    for number, one in enumerate(fuzzed(2000, seed=0)):
        reply = session.post(address, data=one.body, headers=one.headers, timeout=SECONDS)
        told = f"request {number} ({one.headers}, {one.body[:300]!r}): {reply.status_code} {reply.text[:500]}"
        assert reply.status_code < 500, told
        assert "Traceback" not in reply.text and "stack_trace" not in reply.text, told
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        if number % 200 == 0:
            assert ask(address, good).json() == before
    assert ask(address, good).json() == before
    assert statuses[200] > 100 and statuses[400] > 1000, statuses
