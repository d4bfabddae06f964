"""The embedded MLflow server, and the credentials of servers that run elsewhere."""
