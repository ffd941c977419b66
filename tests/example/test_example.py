from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests import ROOT

SERVER = {
    "SECRET_KEY": "k9" + "abcdefghijklmnopqrstuvwxyz" * 2,
    "ALLOWED_HOSTS": "crm.example.com",
    "KAPSO_API_KEY": "key",
    "KAPSO_WEBHOOK_SECRET": "a secret that is long enough",
    "KAPSO_PUBLIC_URL": "https://crm.example.com",
}
ALL = [
    *SERVER,
    "DEBUG",
    "CACHE_URL",
    "DATABASE_URL",
    "EMAIL_URL",
    "KAPSO_API_BASE_URL",
    "DJANGO_SETTINGS_MODULE",
]


def manage(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return python("manage.py", *arguments, **settings)


def python(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ALL}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited, "DATABASE_URL": "sqlite://:memory:", **settings},
        capture_output=True,
        text=True,
    )


def test_a_server_passes_the_deployment_checks() -> None:
    done = manage("check", "--deploy", "--fail-level", "WARNING", **SERVER)
    assert done.returncode == 0, done.stderr


def test_a_server_must_set_key_secret_and_url() -> None:
    done = manage("check", "--fail-level", "WARNING", SECRET_KEY="x")
    assert done.returncode == 1
    for name in ("API_KEY", "WEBHOOK_SECRET", "PUBLIC_URL"):
        assert f"KAPSO_CONNECT['{name}'] is not set" in done.stderr


def test_a_server_needs_a_secret_key() -> None:
    done = python("-c", "import example_project.settings", DEBUG="False")
    assert done.returncode != 0
    assert "SECRET_KEY is not set, and DEBUG is off." in done.stderr


@pytest.mark.parametrize(
    ("settings", "debug"), [({}, "True"), (SERVER, "False"), ({**SERVER, "DEBUG": "on"}, "True")]
)
def test_a_secret_key_turns_debug_off_unless_asked(settings: dict[str, str], debug: str) -> None:
    source = "from example_project import settings; print(settings.DEBUG)"
    assert python("-c", source, **settings).stdout.strip() == debug


def test_the_defaults_are_for_development() -> None:
    done = manage("check", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stderr


def test_its_migrations_are_complete() -> None:
    done = manage("makemigrations", "--check", "--dry-run")
    assert done.returncode == 0, done.stdout


def test_every_variable_it_reads_is_in_the_example_file() -> None:
    example = (ROOT / ".env.example").read_text()
    done = python("-c", PRINT_VARIABLES, **SERVER)
    assert done.returncode == 0, done.stderr
    read = done.stdout.split()
    assert {"KAPSO_API_KEY", "SECRET_KEY", "DATABASE_URL"} <= set(read)
    assert [name for name in read if f"{name}=" not in example] == []


PRINT_VARIABLES = """
import environ

names = set()


class RecordingEnv(environ.Env):
    def get_value(self, var, *args, **kwargs):
        names.add(str(var))
        return super().get_value(var, *args, **kwargs)


environ.Env = RecordingEnv
import example_project.settings
print(*sorted(names))
"""


def test_its_own_tests_pass() -> None:
    inherited = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "example_project"],
        cwd=ROOT,
        env={name: value for name, value in inherited.items() if name not in ALL},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"^(?:=+ )?(\d+) passed in", done.stdout, re.MULTILINE)
    assert passed is not None, "all of them, and none is skipped"
    assert int(passed[1]) > 5
