"""The MLflow server next to another program: started in the background, and held until that program ends."""

import threading
from pathlib import Path

from binsweep.data.errors import first_line
from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.mlflow_server.named_server import named_server, registry_of
from binsweep.tracking.processes import kill_started

LEAVE_SECONDS = 30.0


class ServerBeside:
    """The server that `tracking_server` gives for a home, while this is open.

    `url` is None and `problem` empty until it answers; `problem` says why it never will.
    """

    def __init__(self, home: Path) -> None:
        self.url: str | None = None
        self.problem = ""
        self._home = home
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="mlflow-beside", daemon=True)
        self._thread.start()

    @property
    def registry(self) -> str | None:
        """The server that has the registered models; None until `url` is known."""
        return None if self.url is None else registry_of(self.url)

    def _hold(self) -> None:
        try:
            with tracking_server(self._home) as uri:
                self.url = uri
                self._leave.wait()
        except Exception as error:  # also what its client raises: the other program goes on without MLflow
            self.problem = first_line(error)
        finally:
            self.url = None

    def close(self) -> None:
        """Leave the server, which ends it if nobody else uses it."""
        self._leave.set()
        if self.url is None and not self.problem and named_server() is None:
            kill_started()  # it is still starting, and a start may take minutes
        self._thread.join(LEAVE_SECONDS)
