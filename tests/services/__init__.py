"""Real servers for tests, each in processes of its own on 127.0.0.1: context managers that leave nothing behind."""

from tests.services.mlflow_server import MlflowServer
from tests.services.postgres import Postgres
from tests.services.ray_nodes import RayNode, RayNodes
from tests.services.s3 import S3Server, use_aws
from tests.services.service import Service

__all__ = ["MlflowServer", "Postgres", "RayNode", "RayNodes", "S3Server", "Service", "use_aws"]
