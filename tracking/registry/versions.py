"""The model registry: versions of the counting model, and which of them is champion."""

from __future__ import annotations

import base64
import re
import tempfile

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from binsweep.data.errors import UserError

CHAMPION, CHALLENGER = "champion", "challenger"
CODE_FINGERPRINT = "code.fingerprint"  # the tag of a version from own training code


def image_rows(images: list[bytes]) -> pd.DataFrame:
    """The served model's input: a string column `image` with base64 of each file's bytes."""
    return pd.DataFrame({"image": [base64.b64encode(content).decode() for content in images]})


def find_version(model_uri: str, tracking_uri: str) -> ModelVersion | None:
    """The version at models:/NAME@ALIAS or models:/NAME/VERSION; None for any other address."""
    address = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))", model_uri)
    if address is None:
        return None
    client = MlflowClient(tracking_uri)
    if address["alias"]:
        return client.get_model_version_by_alias(address["name"], address["alias"])
    return client.get_model_version(address["name"], address["version"])


def is_own_code(version: ModelVersion) -> bool:
    """Whether a version comes from own training code: what it takes and answers is known to its code alone."""
    return CODE_FINGERPRINT in version.tags


def stored_predictions(tracking_uri: str, version: ModelVersion) -> pd.DataFrame:
    """The version's predictions for its test split when it was judged.

    One row for each photo with `id`, `true`, `predicted`, `confidence` and a column pLABEL for each label. Raises
    UserError if none are stored.
    """
    where = f"{test_folder(version.version)}/predictions.parquet"
    try:
        with tempfile.TemporaryDirectory() as folder:
            return pd.read_parquet(
                MlflowClient(tracking_uri).download_artifacts(version.run_id or "", where, folder)
            )
    except (MlflowException, OSError) as error:
        name = f"{version.name} version {version.version}"
        raise UserError(f"{name} has no stored predictions ({where})", "promote a sweep again") from error


def test_folder(version: str) -> str:
    """The folder in a version's run for its evaluation on the test split; a run may become several versions."""
    return f"test/version-{version}"


def describe(tracking_uri: str, name: str, version: str, text: str) -> None:
    """Set a version's description, Markdown in the registry's page, cut to the 5,000 characters that it keeps."""
    MlflowClient(tracking_uri).update_model_version(name, version, text[:5000])


def versions_of(tracking_uri: str, name: str) -> list[ModelVersion]:
    """Every version of a registered model; none if there is no such model."""
    client, token = MlflowClient(tracking_uri), None
    versions: list[ModelVersion] = []
    while True:
        page = client.search_model_versions(_name_filter(name), page_token=token)
        versions += [version for version in page if version.name == name]
        token = page.token
        if not token:
            return versions


def _name_filter(name: str) -> str | None:
    """MLflow's filter for a name; None, which admits all names, if its syntax cannot express this one."""
    quote = '"' if "'" in name else "'"
    return None if quote in name else f"name={quote}{name}{quote}"


def champion_of(tracking_uri: str, name: str) -> ModelVersion | None:
    """The version that the alias `champion` points at; None if there is none."""
    client = MlflowClient(tracking_uri)
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        # A server with accounts denies access to a model that does not exist as to one of another user.
        if error.error_code == "PERMISSION_DENIED":
            found = client.search_registered_models(_name_filter(name))
            if all(model.name != name for model in found):
                return None
        raise
