"""The model that `mlflow.pyfunc` loads and serves: it classifies images with the result of a final trial.

Registered models name this module as their loader, so it must keep its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.run_folder import CARD, PROMPT

if TYPE_CHECKING:
    from trainer.inference import Classifier

MODEL_FILES = (PROMPT, CARD)
"""Files of a model. The backbone's weights are not among them; they are searched as always (`SPTUNE_WEIGHTS`)."""


class PyfuncModel:
    """Wrapper of a classifier with the method that MLflow calls."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the most likely class of each image.

        Args:
            images: a pandas table with a column `image` of encoded images (PNG, JPEG...); in JSON base64.
            params: passed by MLflow, and not used.

        Returns:
            A pandas table with columns `class_name` and `confidence` (0..1).

        Raises:
            ValueError: if an image cannot be decoded, with its index.
        """
        # MLflow requires pandas; the trainer does without it.
        import pandas as pd

        predictions = self._classifier.classify([*images["image"]], top=1)
        most_likely = [classes[0] for classes in predictions]
        return pd.DataFrame(
            {
                "class_name": [prediction.class_name for prediction in most_likely],
                "confidence": [prediction.confidence for prediction in most_likely],
            }
        )


def _load_pyfunc(path: str) -> PyfuncModel:
    """Load a model. MLflow calls this function of the module that an `MLmodel` file names."""
    import torch

    import trainer

    return PyfuncModel(trainer.load(path, device="cuda" if torch.cuda.is_available() else "cpu"))
