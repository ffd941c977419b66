"""Django without a database, and a server that can break its connections on request."""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from .state import store

HERE = Path(__file__).parent
MAX_REQUEST_BODY = 1024 * 1024
MAX_DRAINED = 16 * MAX_REQUEST_BODY
# Keys in the WSGI environ.
HANDLER_KEY = "kapso_sandbox.handler"
TOO_LARGE_KEY = "kapso_sandbox.too_large"


class RequestHandler(WSGIRequestHandler):
    connection: Any
    disable_nagle_algorithm = True  # otherwise a persistent connection waits 40 ms each time
    oversized = False

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = {**super().get_environ(), HANDLER_KEY: self}
        length = environ.get("CONTENT_LENGTH", "")
        if length.isdigit() and (len(length) > 12 or int(length) > MAX_REQUEST_BODY):
            environ |= {TOO_LARGE_KEY: True, "CONTENT_LENGTH": "0"}
            self.close_connection = self.oversized = True
        return environ

    def handle(self) -> None:
        super().handle()
        if self.oversized:
            self._drain()

    def _drain(self) -> None:
        """Read the rest: unread data would reset the connection before the response arrives."""
        drained = 0
        with contextlib.suppress(OSError):
            self.connection.settimeout(1)
            while drained < MAX_DRAINED and (piece := self.connection.recv(65536)):
                drained += len(piece)

    def close_without_response(self) -> None:
        """Break the connection without a response."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        if store.options.verbose:
            sys.stderr.write(f"{format % args}\n")


class Server(ThreadedWSGIServer):
    request_queue_size = 512  # so that a burst of connections is not refused

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # the client closed the connection
            super().handle_error(request, client_address)


def configure() -> None:
    """Configure Django for this process; a site's settings are never read."""
    settings.configure(
        SECRET_KEY=secrets.token_hex(),
        DEBUG=False,
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="kapso_connect.sandbox.urls",
        MIDDLEWARE=[
            "django.middleware.common.CommonMiddleware",  # Content-Length, thus keep-alive
            "kapso_connect.sandbox.middleware.ApiMiddleware",
            "kapso_connect.sandbox.middleware.ErrorMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "DIRS": [HERE / "templates"],
            }
        ],
        DATABASES={},
        USE_TZ=True,
        TIME_ZONE="UTC",
        APPEND_SLASH=False,
        DATA_UPLOAD_MAX_MEMORY_SIZE=MAX_REQUEST_BODY,
        LOGGING={
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"null": {"class": "logging.NullHandler"}},
            # Refused requests are normal in a sandbox.
            "loggers": {"django": {"handlers": ["null"], "propagate": False}},
        },
    )


def listen(host: str, port: int) -> Server:
    """Return a server that is bound to ``host`` and ``port``."""
    from django.core.wsgi import get_wsgi_application

    application = get_wsgi_application()
    server = Server((host, port), RequestHandler, ipv6=":" in host)
    server.set_app(application)
    return server
