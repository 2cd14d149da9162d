"""Methods that add nothing and train a part of the network, or all of it."""

from __future__ import annotations

from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone


class Full(Adaptation):
    """Full fine-tuning: all parameters of the network learn."""

    def learns(self, name: str, backbone: Backbone) -> bool:
        """Return True: there is no frozen parameter."""
        return True


class Bias(Adaptation):
    """BitFit: all biases of the network learn, and nothing else of it (Ben Zaken et al., ACL 2022, arXiv 2106.10199).

    Biases are those of projections, MLPs, norms and the patch embedding, as in section 3 (all bias terms).
    """

    def learns(self, name: str, backbone: Backbone) -> bool:
        """Return whether a parameter is a bias."""
        return name.endswith(".bias")


class PartialOne(Adaptation):
    """Partial-1: the last block of the network learns (VPT, arXiv 2203.12119, section 4.1: Partial-k).

    The last norm, behind the blocks, is frozen: the paper speaks of the last k layers alone. The blocks before the last
    one need no gradient, so autograd keeps nothing of them.
    """

    def learns(self, name: str, backbone: Backbone) -> bool:
        """Return whether a parameter is one of the last block."""
        return name.startswith(f"vit.blocks.{backbone.num_layers - 1}.")
