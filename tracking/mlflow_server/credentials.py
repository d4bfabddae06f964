"""The address of an MLflow server, as the environment names it."""

import os
import re
from urllib.parse import unquote, urlsplit

VARIABLE = "MLFLOW_TRACKING_URI"
_WITHOUT_SCHEME = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+(/.*)?")


def tidy(address: str) -> str:
    """An address as MLflow's client takes it, from what people copy: out of a browser, or without http://."""
    address = address.strip()
    if _WITHOUT_SCHEME.fullmatch(address):
        address = f"http://{address}"
    scheme, colon, rest = address.partition("://")
    if not colon or scheme.lower() not in ("http", "https"):
        return address
    return f"{scheme.lower()}://{rest.partition('#')[0].rstrip('/')}"  # behind # stands a page of the UI


def tidy_the_address() -> None:
    """Tidy MLFLOW_TRACKING_URI for this process and its children, and move user and password out of it.

    They go into MLflow's own two variables. Addresses are printed and written down; credentials must not be.
    """
    address = tidy(os.environ.get(VARIABLE, ""))
    if not address:
        return
    parts = urlsplit(address)
    if "@" in parts.netloc:
        given, _, host = parts.netloc.rpartition("@")
        user, _, password = given.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = map(
            unquote, (user, password)
        )
        address = parts._replace(netloc=host).geturl()
    os.environ[VARIABLE] = address
