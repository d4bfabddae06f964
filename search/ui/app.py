"""The application behind the page: its files, what it is told, and what its buttons do."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field

from binsweep.data.errors import UserError, first_line
from binsweep.search.history.run_keys import SWEEP, trial_key
from binsweep.search.report.page import render_page
from binsweep.search.report.sweep_report import TEMPLATE as REPORT_TEMPLATE
from binsweep.search.report.sweep_report import contents
from binsweep.search.steering.request import Kind, requester
from binsweep.search.steering.request import Request as SteeringRequest
from binsweep.search.ui import views
from binsweep.search.ui.guard import Guard, signed
from binsweep.search.ui.promotions import Promotions
from binsweep.search.workflows.roll_back import roll_back
from binsweep.search.workflows.steer import plan, read_values, steer
from binsweep.tracking.mlflow_server.beside import ServerBeside

STATIC = Path(__file__).with_name("static")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
ANSWER_SECONDS = 0.5  # to wait for a sweep's answer; later ones appear on the page
# A file of somebody's training code, or the report with its own script: it is shown, and can do nothing.
SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
REPORT_POLICY = f"{SANDBOX.replace('sandbox', 'sandbox allow-scripts')}; script-src 'unsafe-inline'"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ask(_Body):
    """A request to a sweep; with `check` the answer is what it would bring about, and nothing is kept."""

    kind: Kind
    trial: int | None = None
    values: dict[str, str | list[str]] = {}
    check: bool


class AskCluster(_Body):
    """A command to a submitted sweep, as it is written after the sweep's name."""

    kind: Kind
    trial: int | None = None
    assignments: Annotated[list[str], Field(max_length=200)] = []


class Promote(_Body):
    dry_run: bool
    approved: bool = False


class RollBack(_Body):
    reason: Annotated[str, Field(min_length=1, max_length=1000)]


def make_app(
    home: views.Home,
    port: int,
    token: str,
    mlflow: ServerBeside,
    promotions: Promotions,
    dashboard: str | None,
) -> Guard:
    """The application for a server on `port` of the loopback; `dashboard` is the Ray cluster's, if there is one."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    link = functools.partial(signed, token)

    # A refusal is an answer with its reason; as an error, browsers would write it to the console.
    @app.exception_handler(UserError)
    def refused(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"refused": error.message, "hint": error.hint})

    @app.exception_handler(RequestValidationError)
    def misshapen(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"refused": f"{where}: {first['msg']}", "hint": ""})

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"message": f"{type(error).__name__}: {first_line(error)}", "hint": ""}, 500)

    _add_pages(app, home, mlflow)
    _add_sweeps(app, home, link, mlflow)
    _add_models(app, home, mlflow)
    _add_actions(app, home, promotions)
    if dashboard is not None:
        _add_cluster(app, dashboard)

    @app.get("/api/session")
    def session() -> dict[str, Any]:
        """Whose page it is, and what is next to it."""
        return {
            "home": str(home.folder),
            "who": requester(),
            "mlflow": mlflow.url,
            "mlflow_problem": mlflow.problem,
            "cluster": dashboard,
        }

    return Guard(app, port, token)


def _add_pages(app: FastAPI, home: views.Home, mlflow: ServerBeside) -> None:
    """What a browser fetches by its address alone."""

    @app.get("/")
    def index() -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        file = STATIC / name
        if file.parent != STATIC or file.suffix not in TYPES or not file.is_file():
            return PlainTextResponse("there is no such file", 404)
        return FileResponse(file, media_type=TYPES[file.suffix])

    @app.get("/files/{sweep}/{number}/{path:path}")
    def trial_file(sweep: str, number: int, path: str) -> Response:
        folder = home.sweep(sweep).folder
        if path not in views.files_of(folder, number):
            return PlainTextResponse("there is no such file", 404)
        file = folder / trial_key(number) / path
        kind = views.PICTURES.get(file.suffix.lower(), "text/plain; charset=utf-8")
        return FileResponse(file, media_type=kind, headers={"Content-Security-Policy": SANDBOX})

    @app.get("/report/{sweep}")
    def report(sweep: str) -> Response:
        page = render_page(REPORT_TEMPLATE, contents(home.sweep(sweep).history()))
        return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})

    @app.get("/mlflow/{sweep}")
    def sweep_in_mlflow(sweep: str) -> Response:
        return _run_in_mlflow(home, mlflow, sweep, SWEEP)

    @app.get("/mlflow/{sweep}/{number}")
    def trial_in_mlflow(sweep: str, number: int) -> Response:
        return _run_in_mlflow(home, mlflow, sweep, trial_key(number))


def _run_in_mlflow(home: views.Home, mlflow: ServerBeside, sweep: str, key: str) -> Response:
    """Forward to a run's page in MLflow's own UI."""
    from binsweep.tracking.runlog.run_log import run_page  # MLflow takes seconds to import

    live = home.sweep(sweep)
    if mlflow.url is None:
        return PlainTextResponse(f"MLflow is not there yet. {mlflow.problem}", 503)
    page = run_page(live.folder / "spool", mlflow.url, live.history().spec.name, key)
    if page is None:
        return PlainTextResponse("MLflow has no such run yet: it is sent in the background", 404)
    return RedirectResponse(f"{mlflow.url}/{page}", 302)


def _add_sweeps(app: FastAPI, home: views.Home, link: Callable[..., str], mlflow: ServerBeside) -> None:
    @app.get("/api/sweeps")
    def sweeps() -> list[dict[str, Any]]:
        return home.sweeps()

    @app.get("/api/sweeps/{sweep}")
    def one_sweep(sweep: str, since: str = "") -> Response:
        return Response(home.sweep(sweep).state(since), media_type="application/json")

    @app.get("/api/sweeps/{sweep}/links")
    def links(sweep: str) -> dict[str, str]:
        return {"report": link("report", sweep), "mlflow": link("mlflow", sweep)}

    @app.get("/api/sweeps/{sweep}/log")
    def log(sweep: str) -> list[dict[str, Any]]:
        return views.log(home.sweep(sweep))

    @app.get("/api/sweeps/{sweep}/conclusions")
    def conclusions(sweep: str) -> dict[str, Any]:
        return views.conclusions(home.sweep(sweep))

    @app.get("/api/sweeps/{sweep}/trials/{number}")
    def trial(sweep: str, number: int) -> dict[str, Any]:
        told = views.trial(home.sweep(sweep), number)
        files = [{"name": name, "url": link("files", sweep, str(number), name)} for name in told["files"]]
        return {**told, "files": files, "mlflow": link("mlflow", sweep, str(number))}

    @app.get("/api/compare")
    def comparison(sweep: Annotated[list[str], Query()]) -> dict[str, Any]:
        return views.comparison([home.sweep(name) for name in dict.fromkeys(sweep)])


def _add_models(app: FastAPI, home: views.Home, mlflow: ServerBeside) -> None:
    @app.get("/api/models")
    def models() -> dict[str, Any]:
        if mlflow.registry is None:
            return {"models": [], "problem": mlflow.problem or "MLflow is starting"}
        from binsweep.tracking.registry.overview import registered_models  # MLflow takes seconds to import

        return {"models": registered_models(mlflow.registry), "problem": ""}

    @app.post("/api/models/{model}/rollback")
    def rollback(model: str, body: RollBack) -> dict[str, str]:
        if mlflow.registry is None:
            raise UserError(
                f"MLflow is not there yet: {mlflow.problem or 'it is starting'}", "try again soon"
            )
        return {"answer": roll_back(model, body.reason, home.folder, mlflow.registry)}


def _add_actions(app: FastAPI, home: views.Home, promotions: Promotions) -> None:
    @app.post("/api/sweeps/{sweep}/ask")
    def ask(sweep: str, body: Ask) -> dict[str, Any]:
        live = home.sweep(sweep)
        history = live.history()
        values = read_values(body.kind, history.spec.space, body.values)
        request = SteeringRequest(body.kind, body.trial, values)
        if body.check:
            return {"answer": plan(live.folder, request, history), "happened": False}
        answer = steer(live.folder, request, ANSWER_SECONDS, history)
        return {"answer": answer.text, "happened": answer.happened, "request": request.id}

    @app.get("/api/sweeps/{sweep}/promotion")
    def promotion(sweep: str) -> dict[str, Any] | None:
        return promotions.of(home.sweep(sweep).folder)

    @app.post("/api/sweeps/{sweep}/promotion")
    def promote(sweep: str, body: Promote) -> dict[str, Any] | None:
        folder = home.sweep(sweep).folder
        promotions.start(folder, body.dry_run, body.approved)
        return promotions.of(folder)

    @app.post("/api/sweeps/{sweep}/promotion/interrupt")
    def interrupt(sweep: str) -> dict[str, Any] | None:
        folder = home.sweep(sweep).folder
        promotions.interrupt(folder.name)
        return promotions.of(folder)


def _add_cluster(app: FastAPI, dashboard: str) -> None:
    @app.get("/api/cluster")
    def cluster() -> list[dict[str, Any]]:
        from binsweep.search.ray_backend.jobs import jobs  # Ray takes seconds to import

        return [dataclasses.asdict(job) for job in jobs(dashboard)]

    @app.post("/api/cluster/{name}/ask")
    def ask(name: str, body: AskCluster) -> dict[str, Any]:
        from binsweep.search.ray_backend.job_steering import steer_job

        like = ["--like"] if body.kind == "enqueue" else []
        number = [] if body.trial is None else [*like, str(body.trial)]
        answer = steer_job(name, dashboard, [body.kind, *number], body.assignments)
        return {"answer": answer, "happened": True}
