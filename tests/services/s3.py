"""A throw-away object store: moto's server."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import urllib.request
from typing import Any

import pytest

from tests.services.service import HOST, Service, free_port, ready


def use_aws(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Have these AWS_ variables and no other, and no key of this machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", **variables}.items():
        patch.setenv(name, value)


class S3Server(Service):
    """An S3 endpoint with one bucket, which looks at keys and permissions. Its objects are in its memory."""

    def __init__(self, bucket: str = "bucket", region: str = "eu-central-1") -> None:
        super().__init__()
        self.bucket = bucket
        self.url = f"http://{HOST}:{free_port()}"
        self.env = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            "AWS_ACCESS_KEY_ID": "AKIANOBODY",
            "AWS_SECRET_ACCESS_KEY": "nothing",
        }

    @classmethod
    def why_not(cls) -> str | None:
        """Why there can be none here, or None."""
        missing = [name for name in ("moto", "flask", "boto3") if importlib.util.find_spec(name) is None]
        return f"there is no {missing[0]} here" if missing else None

    def client(self, service: str = "s3", **env: str) -> Any:
        """A boto3 client with the key in `env`, or with another's AWS_ variables."""
        env = {**self.env, **env}
        return importlib.import_module("boto3").client(
            service,
            endpoint_url=self.url,
            region_name=env["AWS_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        )

    def start(self) -> None:
        """Start it, with its bucket and the key of one who may do everything."""
        address, port = self.url.removeprefix("http://").split(":")
        server = self._open(sys.executable, "-m", "moto.server", "-H", address, "-p", port)
        self._await(server, lambda: ready(f"{self.url}/moto-api/"))
        where = {"LocationConstraint": self.env["AWS_REGION"]}
        self.client().create_bucket(Bucket=self.bucket, CreateBucketConfiguration=where)
        self.env |= self.user("owner", "*")
        # From here on it looks at keys.
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset-auth", b"0", plain)).close()

    def user(self, name: str, *actions: str) -> dict[str, str]:
        """A further user who may do these actions alone, such as `s3:GetObject`: the AWS_ variables of its key."""
        iam = self.client("iam")
        iam.create_user(UserName=name)
        allowed = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
