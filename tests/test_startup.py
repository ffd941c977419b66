"""How a process starts: which modules it loads, without SECRET_KEY, and on Windows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

SETUP = "import django; django.setup()"
URLCONF = f"{SETUP}; from django.urls import get_resolver; get_resolver()._populate()"
CHECK = f"{URLCONF}; from django.core.management import call_command; call_command('check')"

WITH_URLCONF = ["requests", "urllib3", "drf_spectacular"]
"""Django REST framework imports the first two together with the URLconf, the REST API the third, if
they are installed."""

UNUSED = [
    "phonenumbers",
    "jsonschema",
    "prometheus_client",
    "segno",
    "kapso_connect.monitoring.doctor",
    "kapso_connect.monitoring.metrics",
    "kapso_connect.sandbox",
]


def loaded_modules(code: str) -> set[str]:
    """Run ``code`` in a new interpreter with the example's settings; return its modules."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_"))},
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": "sqlite://:memory:",
        },
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "unused"),
    [(SETUP, [*UNUSED, *WITH_URLCONF]), (URLCONF, UNUSED), (CHECK, UNUSED)],
    ids=["setup", "URLconf", "check"],
)
def test_unused_modules_are_not_loaded(code: str, unused: list[str]) -> None:
    modules = loaded_modules(code)
    assert "kapso_connect.admin.customers" in modules
    assert modules.intersection(unused) == set()


SITE = """
from tests.settings import *
import tempfile
SECRET_KEY = ""
STATIC_ROOT = tempfile.mkdtemp()
STORAGES = {"staticfiles": {
    "BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}}
import django
from django.conf import settings
settings.configure(**{k: v for k, v in globals().items() if k.isupper()})
django.setup()
from django.core.management import call_command
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KAPSO_TEST_DATABASE_URL": "sqlite://:memory:"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_an_image_is_built_without_a_secret_key() -> None:
    output = run(
        SITE
        + """
from django.urls import get_resolver
get_resolver()._populate()
call_command("collectstatic", interactive=False)
call_command("makemigrations", "kapso_connect", "--check", "--dry-run")
call_command("check")
"""
    )
    assert "static files copied" in output
    assert "No changes detected" in output


NOT_ON_WINDOWS = {
    "os": "fork forkpty register_at_fork getuid geteuid getpgid killpg getloadavg setsid uname "
    "sched_getaffinity mkfifo chown pread sysconf",
    "signal": "SIGALRM SIGHUP SIGQUIT SIGKILL SIGUSR1 SIGUSR2 SIGCHLD alarm setitimer getitimer "
    "pthread_kill pthread_sigmask sigwait pause",
    "socket": "AF_UNIX SO_REUSEPORT",
    "time": "tzset clock_gettime pthread_getcpuclockid",
    "select": "poll epoll",
}
MODULES_NOT_ON_WINDOWS = ["fcntl", "grp", "pwd", "pty", "resource", "syslog", "termios", "tty"]

WINDOWS = f"""
import importlib, multiprocessing, pkgutil, sys
import asyncio, subprocess, socketserver, selectors, concurrent.futures, tempfile, getpass
# What is not ours may rely on this platform.
import django, requests, rest_framework, prometheus_client, drf_spectacular, environ, segno, tqdm
import health_check, phonenumbers, django.core.management, django.utils.autoreload
import django.core.files.locks, django.core.servers.basehttp, django.test
from tests import settings as given
from django.conf import settings
settings.configure(**{{k: getattr(given, k) for k in dir(given) if k.isupper()}})
for module, names in {NOT_ON_WINDOWS!r}.items():
    for name in names.split():
        if hasattr(sys.modules.get(module) or importlib.import_module(module), name):
            delattr(sys.modules[module], name)
for name in {MODULES_NOT_ON_WINDOWS!r}:
    sys.modules[name] = None
settings.KAPSO_CONNECT["PUBLIC_URL"] = "http://127.0.0.1:9"
import kapso_connect
django.setup()
names = [m.name for m in pkgutil.walk_packages(kapso_connect.__path__, "kapso_connect.")]
assert len(names) > 100, names
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
"""


def test_every_module_can_be_imported_on_windows() -> None:
    """In an interpreter without what Python does not have there."""
    run(WINDOWS)


def test_command_with_a_time_limit_runs_on_windows() -> None:
    run(
        WINDOWS
        + """
from kapso_connect.kapso.client import KapsoClient
from django.core.management import load_command_class
for name in ("kapso_sync", "kapso_webhook", "kapso_doctor", "kapso_prune", "kapso_invite"):
    load_command_class("kapso_connect", name).create_parser("manage.py", name)
from django.core.management import call_command
call_command("migrate", verbosity=0)
call_command("kapso_prune")
call_command("kapso_invite", "--resume")
import contextlib
from django.core.management import CommandError
with contextlib.suppress(CommandError):
    call_command("kapso_doctor")
from kapso_connect.exceptions import KapsoUnavailable
try:
    KapsoClient("key", base_url="http://127.0.0.1:9", budget=1).get_customer("1")
except KapsoUnavailable:
    print("unavailable")
"""
    )


WITHOUT_ADMIN = """
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "kapso_connect"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)
import django
django.setup()
from django.core.management import call_command
call_command("check", tags=["templates"])
"""


def test_a_site_without_the_admin_passes_the_checks_of_templates() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ADMIN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
