"""What Ray reads from the environment when it is imported. Every module that imports Ray imports this one first."""

import os

# Its own console output, loggers and phoning home give way to the sweep's.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# After so many seconds without its head process, Ray gives up (60 by default): the sweep can end and go on.
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "15")
os.environ.setdefault("RAY_AUTH_MODE", "token")
