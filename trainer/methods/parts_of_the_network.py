"""Methods that add nothing and train a part of the network, or all of it."""

from __future__ import annotations

from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone


class Full(Adaptation):
    """Full fine-tuning: all parameters of the network learn."""

    def learns(self, name: str, backbone: Backbone) -> bool:
        """Return True: there is no frozen parameter."""
        return True
