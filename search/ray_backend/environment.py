"""The environment variables that Ray reads on import. Every module that imports Ray imports this one first."""

import os

# No usage statistics, loggers, signal handler and console output of Ray's own.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Seconds without its head process after which Ray gives up (default 60): the sweep can end and be resumed.
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "15")
os.environ.setdefault("RAY_AUTH_MODE", "token")
