"""What tests of processes and servers share: the quickly scored store of the orchestrator's tests, and the command."""

from tests.orchestrator.conftest import sptune, store

__all__ = ["sptune", "store"]
