"""How long MLflow's client waits for an S3 that does not answer, when artifacts go straight there."""

CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0


def limit_s3_patience(artifact_uri: str) -> None:
    """Let an S3 whose packets vanish be given up after seconds, for runs whose artifacts go to `artifact_uri`: what is
    behind an artifact waits for it, and boto3's own patience is three minutes.

    MLflow uses boto3's default session; one that somebody has set up stays as it is.
    """
    if not artifact_uri.startswith("s3:"):
        return
    import boto3  # takes a second
    from botocore.config import Config
    from botocore.session import get_session

    if boto3.DEFAULT_SESSION is None:
        session = get_session()
        retries = {"mode": "standard", "total_max_attempts": 2}
        session.set_default_client_config(
            Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries=retries)
        )
        boto3.setup_default_session(botocore_session=session)
