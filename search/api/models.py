"""Registered models from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from binsweep.search.api.session import session
from binsweep.search.workflows.home import home_folder, model_uri

if TYPE_CHECKING:  # these imports take seconds
    import pandas as pd

    from binsweep.tracking.serving.model_server import Answer


class LoadedModel:
    """A registered model in this process; `uri` is its address in the registry."""

    def __init__(self, uri: str, answer: Answer) -> None:
        """`answer` gives the answers to the bytes of photos' files."""
        self.uri, self._answer = uri, answer

    def predict(self, paths: str | Path | Sequence[str | Path]) -> pd.DataFrame:
        """Count the items in photos: files, folders, globs, tables, or s3://BUCKET/PREFIX.

        One row per photo: image, count, expected_count, confidence (0 to 1), probabilities (a dict, by count),
        model_version, error. A photo that cannot be read has the reason in `error`, and no count. Raises UserError for
        a place without photos.
        """
        import pandas as pd

        from binsweep.search.workflows.photo_list import PhotoList, find_photos
        from binsweep.search.workflows.predict import answer_photos

        places = [paths] if isinstance(paths, str | Path) else paths
        with session():
            photos = PhotoList(find_photos([str(place) for place in places], None))
            return pd.DataFrame({"image": name, **row} for name, row in answer_photos(photos, [self._answer]))

    def __repr__(self) -> str:
        return f"LoadedModel({self.uri!r})"


def load_model(model: str, home: str | Path | None = None) -> LoadedModel:
    """Load a registered model: NAME (its champion), NAME@alias, NAME/version, or a model URI.

    The registry is that of MLFLOW_REGISTRY_URI, of MLFLOW_TRACKING_URI, or of the home. Raises UserError if there is no
    such model.
    """
    from binsweep.search.workflows.predict import load_answer

    uri = model_uri(model)
    with session():
        return LoadedModel(uri, load_answer(uri, home_folder(home)))
