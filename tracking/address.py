"""The address of an MLflow server, as the environment names it."""

import os
from urllib.parse import unquote, urlsplit


def take_credentials_out_of_the_address() -> None:
    """Move user and password of MLFLOW_TRACKING_URI into MLflow's own two variables, for this process and its children.

    Addresses are printed and written down; credentials must not be.
    """
    parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "").strip())
    if "@" not in parts.netloc:
        return
    given, _, host = parts.netloc.rpartition("@")
    user, _, password = given.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = map(
        unquote, (user, password)
    )
    os.environ["MLFLOW_TRACKING_URI"] = parts._replace(netloc=host).geturl()
