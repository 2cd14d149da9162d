"""A final trial as `mlflow.pyfunc` loads and serves it: images in, class names and confidences out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.run_folder import CARD, PROMPT

if TYPE_CHECKING:
    from trainer.inference import Classifier

MODEL_FILES = (PROMPT, CARD)
"""What a model is made of, beside the backbone's weights: those are found as everywhere (`SPTUNE_WEIGHTS`)."""


class PyfuncModel:
    """What MLflow calls."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> Any:
        """The likeliest class of each image.

        Args:
            images: a pandas table with a column `image` of encoded images (PNG, JPEG...); in JSON base64.
            params: MLflow passes it; there are none.

        Returns:
            A pandas table with columns `class_name` and `confidence` (0..1).

        Raises:
            ValueError: if an image cannot be decoded, with its place.
        """
        import pandas as pd

        best = [found[0] for found in self._classifier.classify([*images["image"]], top=1)]
        return pd.DataFrame(
            {"class_name": [one.class_name for one in best], "confidence": [one.confidence for one in best]}
        )


def _load_pyfunc(path: str) -> PyfuncModel:
    """What MLflow asks the module for that an `MLmodel` names."""
    import torch

    import trainer

    return PyfuncModel(trainer.load(path, device="cuda" if torch.cuda.is_available() else "cpu"))
