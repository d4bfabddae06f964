"""A model file for the tests of serving: one row per photo, without a network in it."""

import base64
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Echo(PythonModel):
    """Counts the bytes of each photo; the photo "bad" is refused, the photo "slow" takes 5 s."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        rows = []
        for text in model_input["image"]:
            content = base64.b64decode(text, validate=True)
            if content == b"bad":
                raise MlflowException.invalid_parameter_value("no readable image: bad\nsecond line")
            if content == b"slow":
                import time

                time.sleep(5)
            rows.append({"count": len(content), "confidence": 0.5, "probabilities": {"1": 0.5}})
        return pd.DataFrame(rows)


set_model(Echo())
