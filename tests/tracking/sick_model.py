"""Model files for the tests of serving: a version that does not load, or that loads and counts nothing."""

import os
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Sick(PythonModel):
    """With the config `loads: false` it fails while it is loaded, otherwise at each request."""

    def load_context(self, context: Any) -> None:
        if not context.model_config["loads"]:
            raise RuntimeError(f"no weights for process {os.getpid()}")

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        raise MlflowException.invalid_parameter_value("no engine for this processor")


set_model(Sick())
