from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests import ROOT

SERVER = {
    "SECRET_KEY": "k9" + "abcdefghijklmnopqrstuvwxyz" * 2,
    "ALLOWED_HOSTS": "crm.example.com",
    "KAPSO_API_KEY": "key",
    "KAPSO_WEBHOOK_SECRET": "a-secret-that-is-long-enough",
    "KAPSO_PUBLIC_URL": "https://crm.example.com",
}
ALL = [
    *SERVER,
    "DEBUG",
    "CACHE_URL",
    "DATABASE_URL",
    "EMAIL_URL",
    "KAPSO_API_BASE_URL",
    "BEHIND_PROXY",
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


SIGNS_OF_A_SERVER = [
    {"ALLOWED_HOSTS": "crm.example.com"},
    {"ALLOWED_HOSTS": "localhost,*"},
    {"ALLOWED_HOSTS": "127.0.0.1.crm.example.com"},
    {"KAPSO_PUBLIC_URL": "https://crm.example.com"},
    {"KAPSO_PUBLIC_URL": "http://192.0.2.1:8000"},
    {"KAPSO_PUBLIC_URL": "http://127.crm.example.com"},
    {"KAPSO_PUBLIC_URL": "https://[::1"},
    {"KAPSO_API_BASE_URL": "https://api.kapso.ai"},
    {"KAPSO_API_KEY": "a-key-of-kapsos"},
    {"KAPSO_WEBHOOK_SECRET": "a-secret-of-its-own"},
    {"BEHIND_PROXY": "on"},
]

LOAD_SETTINGS = """
import json, os, runpy, sys

for variables in json.loads(sys.argv[1]):
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        loaded = runpy.run_path("example_project/settings.py")
        print(*(loaded[name] for name in sys.argv[2:]))
    except Exception as error:
        print(error)
    os.environ.clear()
    os.environ.update(before)
"""


def load_settings(*environments: dict[str, str], names: Sequence[str] = ("DEBUG",)) -> list[str]:
    """Return for each environment the values of settings, or the error."""
    done = python("-c", LOAD_SETTINGS, json.dumps(environments), *names)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_whatever_others_can_reach_needs_a_secret_key() -> None:
    environments = [
        {**sign, **debug} for sign in SIGNS_OF_A_SERVER for debug in ({}, {"DEBUG": "True"})
    ]
    for environment, error in zip(environments, load_settings(*environments), strict=True):
        name = next(iter(environment))
        assert error.startswith(f"SECRET_KEY is not set, and {name} is set as for a server. Set")


def test_the_sandboxs_known_secrets_are_not_used_on_a_server_in_debug() -> None:
    source = (
        "from example_project.settings import *; print(DEBUG, list(KAPSO_CONNECT.values())[:4])"
    )
    server = {"SECRET_KEY": "x" * 50, "DEBUG": "on", "KAPSO_PUBLIC_URL": "https://crm.example.com"}
    expected = "True ['', 'https://api.kapso.ai', [], 'https://crm.example.com']"
    assert python("-c", source, **server).stdout.strip() == expected


def test_the_password_of_the_demo_is_shown_with_the_sandbox_only() -> None:
    password = {"DEMO_PASSWORD": "shown"}
    loaded = load_settings(password, {**SERVER, **password}, names=["DEMO_PASSWORD"])
    assert loaded == ["shown", ""]


def test_sandbox_of_the_own_machine_needs_no_secret_key() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    local = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    environments = (
        {},
        local,
        {"KAPSO_API_KEY": "any", "KAPSO_API_BASE_URL": "http://localhost:8901"},
        {"ALLOWED_HOSTS": "127.0.0.1,localhost,[::1]", "KAPSO_PUBLIC_URL": "http://[::1]:8000"},
    )
    assert load_settings(*environments) == ["True"] * len(environments)


def test_a_variable_without_a_value_is_one_that_is_not_set() -> None:
    names = ("SECRET_KEY", "KAPSO_CONNECT", "CACHES", "ALLOWED_HOSTS")
    blanks = (dict.fromkeys(ALL, value) for value in ("", " "))
    unset, *others = load_settings({}, *blanks, names=names)
    assert unset.startswith("insecure-for-development-only")
    assert others == [unset, unset]


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
