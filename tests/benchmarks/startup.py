"""What adding the app costs each process as it starts: python -m tests.benchmarks.startup

The base is a site of Django's own apps and Django REST framework, with the admin and one view set
in its URLconf. Every figure is of a fresh interpreter that finds its modules compiled, in the
processor's time, and every step has those before it in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from .measuring import OURS, Row, finish, in_turn, is_installed, parser

BASE = "Django and DRF"
STEPS = {
    "setup": "Start-up: django.setup()",
    "urls": "Start-up: and the URLconf",
    "check": "Start-up: and manage.py check",
}
SITES: dict[str, dict[str, Any]] = {
    BASE: {"apps": [], "urls": {}},
    OURS: {
        "apps": ["kapso_connect"],
        "urls": {"whatsapp/": "kapso_connect.urls", "api/whatsapp/": "kapso_connect.api.urls"},
        "settings": {
            "KAPSO_CONNECT": {
                "API_KEY": "benchmark",
                "WEBHOOK_SECRET": "benchmark",
                "PUBLIC_URL": "https://testserver",
            }
        },
    },
    "dj-stripe": {
        "module": "djstripe",
        "apps": ["djstripe"],
        "urls": {"stripe/": "djstripe.urls"},
        "settings": {
            "STRIPE_TEST_SECRET_KEY": "sk_test_benchmark",
            "STRIPE_LIVE_MODE": False,
            "DJSTRIPE_FOREIGN_KEY_TO_FIELD": "id",
        },
    },
    "django-anymail": {
        "module": "anymail",
        "apps": ["anymail"],
        "urls": {"anymail/": "anymail.urls"},
        "settings": {"ANYMAIL": {"WEBHOOK_SECRET": "user:benchmark"}},
    },
}

START = """
import json, sys, time

site, last = json.loads(sys.argv[1]), sys.argv[2]
started = time.process_time()

import django
from django.conf import settings

PARTS = ["admin", "auth", "contenttypes", "sessions", "messages", "staticfiles"]
settings.configure(
    SECRET_KEY="benchmarks-only",
    ROOT_URLCONF="__main__",
    ALLOWED_HOSTS=["testserver"],
    STATIC_URL="static/",
    INSTALLED_APPS=[*(f"django.contrib.{part}" for part in PARTS), "rest_framework", *site["apps"]],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    **site.get("settings", {}),
)
django.setup()
if last != "setup":
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.urls import get_resolver, include, path
    from rest_framework import pagination, routers, serializers, throttling, viewsets

    class UserSerializer(serializers.ModelSerializer):
        class Meta:
            model = User
            fields = ["id", "username"]

    class Users(viewsets.ModelViewSet):
        queryset = User.objects.all()
        serializer_class = UserSerializer

    router = routers.DefaultRouter()
    router.register("users", Users)
    urlpatterns = [path("admin/", admin.site.urls), path("api/", include(router.urls))]
    urlpatterns += [path(route, include(urlconf)) for route, urlconf in site["urls"].items()]
    get_resolver()._populate()
if last == "check":
    from django.core.management import call_command

    call_command("check", verbosity=0, stdout=open("/dev/null", "w"))
took = time.process_time() - started

import resource

unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({"seconds": took, "peak_bytes": peak}))
"""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = parser("startup", databases=False)
    options.add_argument("--rounds", type=int, help="By default 21.")
    options = options.parse_args(arguments)
    rounds = options.rounds or (1 if options.quick else 21)
    sites = {who: site for who, site in SITES.items() if is_installed(site.get("module", "django"))}
    rows: list[Row] = []
    with TemporaryDirectory(prefix="kapso-bench-") as compiled:
        for step, case in STEPS.items():
            starts = {who: Start(site, step, compiled) for who, site in sites.items()}
            subjects = {who: start.seconds for who, start in starts.items()}
            for start in starts.values() if not options.quick else ():
                start()  # compiles what it needs
            facts = {who: {"peak_bytes": start()["peak_bytes"]} for who, start in starts.items()}
            rows += with_remarks(
                in_turn(case, subjects, rounds=rounds, base=BASE, warm_up=0, facts=facts)
            )
    return finish(rows, options.json)


@dataclass(frozen=True)
class Start:
    """Starts an interpreter with ``site``, and returns what it says of itself."""

    site: dict[str, Any]
    last_step: str
    compiled: str

    def __call__(self) -> dict[str, Any]:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": self.compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(
            [sys.executable, "-c", START, json.dumps(self.site), self.last_step],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures

    def seconds(self) -> float:
        took: float = self()["seconds"]
        return took


def with_remarks(rows: list[Row]) -> list[Row]:
    """Return ``rows`` with what each adds to the base, the first of them, as the ratio has it."""
    base = rows[0]
    return [
        base,
        *(
            replace(
                row,
                remark=f"{1000 * base.seconds * ((row.ratio or 1) - 1):+.0f} ms, "
                f"{((row.peak_bytes or 0) - (base.peak_bytes or 0)) / 2**20:+.1f} MiB",
            )
            for row in rows[1:]
        ),
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
