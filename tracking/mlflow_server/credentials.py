"""The addresses and the credentials of named MLflow servers, as the environment gives them."""

import os
import re
from urllib.parse import unquote, urlsplit

TRACKING, REGISTRY = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
USERNAME, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
INSECURE_TLS = "MLFLOW_TRACKING_INSECURE_TLS"
_WITHOUT_SCHEME = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+(/.*)?")


def normalize_address(address: str) -> str:
    """Normalise an address that was copied from a browser, or written without http://, for MLflow's client."""
    address = address.strip()
    if _WITHOUT_SCHEME.fullmatch(address):
        address = f"http://{address}"
    scheme, colon, rest = address.partition("://")
    if not colon or scheme.lower() not in ("http", "https"):
        return address
    return f"{scheme.lower()}://{rest.partition('#')[0].rstrip('/')}"  # a page of the UI follows #


def normalize_addresses() -> None:
    """Normalise MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI for this process and its children, and move user and
    password out of them.

    They move to MLflow's own two variables, because addresses are printed and stored and credentials must not be.
    MLflow's client has one login for both servers: that of the registry's address counts if there is no other.
    """
    for variable in (TRACKING, REGISTRY):
        address = normalize_address(os.environ.get(variable, ""))
        if not address:
            continue
        parts = urlsplit(address)
        if "@" in parts.netloc:
            login, _, host = parts.netloc.rpartition("@")
            user, _, password = login.partition(":")
            if variable == TRACKING or not any(os.environ.get(name) for name in (USERNAME, TOKEN)):
                os.environ[USERNAME], os.environ[PASSWORD] = map(unquote, (user, password))
            address = parts._replace(netloc=host).geturl()
        os.environ[variable] = address
