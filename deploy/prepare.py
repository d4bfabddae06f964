"""What must be there before MLflow's server starts: the bucket, the accounts' tables and the accounts.

Passwords come from the environment at every start, so that a changed .env changes them. It is done here, by one
process, because the server's workers would all do it at once.
"""

import os

import boto3
from botocore.exceptions import ClientError
from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore


def make_bucket(name: str) -> None:
    """Create the bucket of the artifacts where there is none."""
    try:
        boto3.client("s3").create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise


def set_accounts(passwords: dict[str, str], admin: str) -> None:
    """Let exactly these passwords open these accounts."""
    store = SqlAlchemyStore()
    store.init_db(read_auth_config().database_uri)
    for user, password in passwords.items():
        if store.has_user(user):
            store.update_user(user, password=password, is_admin=user == admin)
        else:
            store.create_user(user, password, is_admin=user == admin)


if __name__ == "__main__":
    make_bucket(os.environ["BUCKET"])
    set_accounts(
        {
            "admin": os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"],
            "sweeps": os.environ["MLFLOW_SWEEPS_PASSWORD"],
            "serving": os.environ["MLFLOW_SERVING_PASSWORD"],
        },
        admin="admin",
    )
