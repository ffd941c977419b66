"""Django without a database, and a server whose connections can be broken on request."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.messages.storage.cookie import CookieStorage
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from .hosted import HEADINGS_BY_LANGUAGE

HERE = Path(__file__).parent
CONNECTION_KEY = "kapso_sandbox.connection"  # in the WSGI environ: the client's socket


class RequestHandler(WSGIRequestHandler):
    disable_nagle_algorithm = True  # otherwise a persistent connection waits 40 ms each time

    def get_environ(self) -> dict[str, Any]:
        return {**super().get_environ(), CONNECTION_KEY: self.connection}


class NoticeStorage(CookieStorage):
    """Keeps the notices of the pages in a cookie. Its name differs from that of other sites on
    this machine: a cookie is sent to all ports."""

    cookie_name = "kapso_sandbox_notices"


class Server(ThreadedWSGIServer):
    request_queue_size = 512  # so that a burst of connections is not refused


def configure(*, verbose: bool, allowed_hosts: list[str]) -> None:
    """Configure Django for this process; a site's settings are never read."""
    settings.configure(
        SECRET_KEY=secrets.token_hex(),
        DEBUG=False,
        ALLOWED_HOSTS=allowed_hosts,
        ROOT_URLCONF="kapso_connect.sandbox.urls",
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
            "django.middleware.common.CommonMiddleware",  # Content-Length, thus keep-alive
            "django.contrib.messages.middleware.MessageMiddleware",
            "kapso_connect.sandbox.state_file.NoteChangesMiddleware",
            "kapso_connect.sandbox.middleware.SameSiteMiddleware",
            "kapso_connect.sandbox.middleware.SandboxMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "DIRS": [HERE / "templates"],
                "OPTIONS": {
                    "context_processors": [
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        MESSAGE_STORAGE="kapso_connect.sandbox.server.NoticeStorage",
        DATABASES={},
        USE_TZ=True,
        TIME_ZONE="UTC",
        LANGUAGE_CODE="en",
        LANGUAGES=[(code, code) for code in HEADINGS_BY_LANGUAGE],
        APPEND_SLASH=False,
        LOGGING={
            "version": 1,
            "incremental": True,
            "loggers": {
                "django": {"level": "CRITICAL"},  # refused requests are normal in a sandbox
                "django.server": {"level": "INFO" if verbose else "CRITICAL"},
            },
        },
    )


def listen(host: str, port: int) -> Server:
    """Return a server that is bound to ``host`` and ``port``."""
    from django.core.wsgi import get_wsgi_application

    server = Server((host, port), RequestHandler, ipv6=":" in host)
    server.set_app(get_wsgi_application())
    return server
