"""MLflow's own server, whose page opens with our first choices. `sptune ui` serves it with `--app-name sptune`."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from orchestrator.tracking.mlflow_page import with_first_choices

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
UNCHANGED = (b"if-none-match", b"if-modified-since")
"""Headers by which a browser asks for a page only if it has changed."""
CACHING = (b"etag", b"last-modified", b"cache-control")


class PageServer:
    """An ASGI server that answers as another one does, but changes the page.

    Args:
        server: the other server.
    """

    def __init__(self, server: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._server = server

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] != "/":
            await self._server(scope, receive, send)
            return

        # A copy that the browser has of this address may come from a server without our choices.
        headers = [(name, value) for name, value in scope["headers"] if name not in UNCHANGED]
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._server({**scope, "headers": headers}, receive, keep)
        start, *parts = messages
        page = b"".join(part.get("body", b"") for part in parts)
        if start["status"] == 200:
            page = with_first_choices(page)

        kept = [(name, value) for name, value in start["headers"] if name not in (*CACHING, b"content-length")]
        length = (b"content-length", str(len(page)).encode())
        await send({**start, "headers": [*kept, length, (b"cache-control", b"no-cache")]})
        await send({"type": "http.response.body", "body": page})


def create_app() -> PageServer:
    """Return the server, for uvicorn."""
    # Of MLflow's own import, and nothing that a person who looks at results can change.
    warnings.filterwarnings("ignore", "starlette.middleware.wsgi is deprecated")
    from mlflow.server.fastapi_app import app

    return PageServer(app)
