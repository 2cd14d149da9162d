"""Part of a spec about who is told when a sweep ends."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from orchestrator.redaction import has_secret, redact
from orchestrator.spec.fields import SpecPart, is_recorded
from orchestrator.spec.resources import Text

VARIABLE = re.compile(r"\$\{(\w+)\}")
"""An environment variable in the address of a webhook. It is replaced when the webhook is called."""
SECRET_PATHS = ("hooks.slack.com", "discord.com", "discordapp.com")
"""Hosts whose addresses of webhooks are secrets as a whole."""


def _check_argument(value: str) -> str:
    if redact(value) != value:
        raise ValueError(
            f"{redact(value)} holds a secret, and the study database keeps the spec where everyone can read it. "
            "Leave the secret out: the command gets the environment of the driver and can read it there."
        )

    return value


def _check_webhook(value: str, info: ValidationInfo) -> str:
    # What a variable stands for is not in the spec.
    text = VARIABLE.sub("", value)
    parts = urlsplit(text)

    if has_secret(text) or (parts.hostname in SECRET_PATHS and text == value):
        raise ValueError(
            "holds a secret, and the study database keeps the spec where everyone can read it. Put the secret into an "
            "environment variable, and write ${NAME} in its place; ${NAME} may also be the whole address."
        )
    if is_recorded(info):
        return value

    if not value.startswith(("http://", "https://", "${")):
        raise ValueError("must begin with http://, https:// or an environment variable such as ${SPTUNE_WEBHOOK}.")
    if "@" in parts.netloc:
        raise ValueError(f"{value} must have no user name; a command, such as curl, can log in.")

    return value


class Notify(SpecPart):
    """Whom to tell when a sweep is done, has paused, has failed or is out of budget. Give one of the two keys."""

    command: list[Annotated[Text, AfterValidator(_check_argument)]] | None = Field(default=None, min_length=1)
    """Program and its arguments, run without a shell. It reads the message from standard input, as JSON."""
    webhook: Annotated[Text, AfterValidator(_check_webhook)] | None = None
    """Address to which the message is posted, as JSON. ${NAME} stands for an environment variable, such as one with a
    secret."""

    @model_validator(mode="after")
    def _check_one(self, info: ValidationInfo) -> Notify:
        if (self.command is None) == (self.webhook is None) and not is_recorded(info):
            raise ValueError("must have one of command and webhook.")

        return self
