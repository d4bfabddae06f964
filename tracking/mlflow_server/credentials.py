"""The address and the credentials of a named MLflow server, as the environment gives them."""

import os
import re
from urllib.parse import unquote, urlsplit

VARIABLE = "MLFLOW_TRACKING_URI"
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


def normalize_tracking_uri() -> None:
    """Normalise MLFLOW_TRACKING_URI for this process and its children, and move user and password out of it.

    They move to MLflow's own two variables, because addresses are printed and stored and credentials must not be.
    """
    address = normalize_address(os.environ.get(VARIABLE, ""))
    if not address:
        return
    parts = urlsplit(address)
    if "@" in parts.netloc:
        login, _, host = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = map(
            unquote, (user, password)
        )
        address = parts._replace(netloc=host).geturl()
    os.environ[VARIABLE] = address
