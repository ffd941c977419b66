"""The README is followed to the letter, in a new project, with the built wheel."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from example_project.demo.browser import Browser
from example_project.demo.processes import HOST, free_port, serving
from kapso_connect import conf, signals

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
STEPS = README.partition("\n## Add it to your site\n")[2].partition("\n## ")[0]
BLOCK = re.compile(r"^ *```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass
class NewSite:
    """A ``startproject`` site in a virtual environment with the wheel, without this checkout."""

    folder: Path
    wheel: Path
    port: int
    sandbox_port: int
    environment: dict[str, str] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)
    output: str = ""

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    @property
    def log(self) -> Path:
        return self.folder / "site.log"

    def make(self) -> None:
        environment = self.folder / "venv"
        run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
        (packages,) = environment.glob("lib/python*/site-packages")
        # The dependencies are seen; .pth files there, such as the one of this checkout, are not.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run([self.python, "-m", "django", "startproject", "mysite", "."], cwd=self.project)

    @property
    def project(self) -> Path:
        folder = self.folder / "project"
        folder.mkdir(exist_ok=True)
        return folder

    def follow(self, block: re.Match[str]) -> None:
        text = dedented(block)
        if block["language"] == "console":
            for line in text.splitlines():
                self.command(line)
        elif text.startswith("# "):
            heading, _, code = text.partition("\n")
            path = self.project / heading.removeprefix("# ")
            before = path.read_text() if path.parent.name == "mysite" else ""
            path.write_text(f"{before}\n{code}")
        else:
            self.output = self.run(
                self.python, "manage.py", "shell", "--verbosity", "0", "-c", text
            )

    def command(self, line: str) -> None:
        line = line.replace(":8000", f":{self.port}").replace(":8900", f":{self.sandbox_port}")
        words = shlex.split(line)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.environment[name] = value
            return
        assert words[0] == "python"
        words[0] = self.python
        if words[1:] == ["-m", "pip", "install", "django-kapso-connect"]:
            assert self.wheel.name.startswith("django_kapso_connect-")
            self.run(
                *(sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps"),
                # Whether the environment of the tests has it as well is no matter.
                *("--ignore-installed", "--quiet", str(self.wheel)),
            )
        elif words[1:] == ["manage.py", "runserver"]:
            self.serve([*words, "--noreload", f"{HOST}:{self.port}"], self.port, self.log)
        elif words[1:3] == ["-m", "kapso_connect.sandbox"]:
            log = self.folder / "sandbox.log"
            self.serve([*words, "--port", str(self.sandbox_port)], self.sandbox_port, log)
        else:
            self.run(*words, *(["--noinput"] if words[2] == "createsuperuser" else []))

    def serve(self, words: list[str], port: int, log: Path) -> None:
        self.stack.enter_context(serving(words, self.variables(), port, log, self.project))

    def run(self, *words: str) -> str:
        return run(list(words), cwd=self.project, env=self.variables())

    def variables(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("DJANGO_SETTINGS_MODULE", "PYTHONPATH")
            and not name.startswith(("COV_", "KAPSO_"))
        }
        return {
            **inherited,
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SUPERUSER_USERNAME": "staff",
            "DJANGO_SUPERUSER_EMAIL": "staff@example.com",
            "DJANGO_SUPERUSER_PASSWORD": "correct horse",
            **self.environment,
        }


def dedented(block: re.Match[str]) -> str:
    indent = len(block[0]) - len(block[0].lstrip())
    return "".join(line[indent:] or "\n" for line in block["text"].splitlines(keepends=True))


def run(words: list[str], **options: object) -> str:
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    run([*build, str(ROOT)])
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[NewSite]:
    """A new site for which every block of the steps was followed, in their order."""
    site = NewSite(tmp_path_factory.mktemp("site"), wheel, free_port(0), free_port(0))
    with site.stack:
        site.make()
        for block in BLOCK.finditer(STEPS):
            site.follow(block)
        yield site


def test_following_the_steps_gives_a_working_connection(site: NewSite) -> None:
    link = site.output.strip()
    with Browser() as customer:
        page = customer.get(link)
        page = customer.submit(page, page.form("outcome"), ("outcome", "connect"))
    assert (page.status, "Ada's Bakery" in page.text) == (200, True), page.text
    assert page.url.startswith(f"http://{HOST}:{site.port}/whatsapp/success/")
    deadline = time.monotonic() + 10
    while (lines := printed(site)) == [] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [re.sub(r"\d+", "N", line) for line in lines] == [
        "Ada's Bakery connected number N (event N)"
    ]


def printed(site: NewSite) -> list[str]:
    return [line for line in site.log.read_text().splitlines() if "connected number" in line]


def test_the_code_comes_from_the_wheel(site: NewSite) -> None:
    where = site.run(site.python, "-c", "import kapso_connect; print(kapso_connect.__file__)")
    assert Path(where.strip()).is_relative_to(site.folder)


def test_static_files_are_in_the_wheel(site: NewSite) -> None:
    with Browser() as customer:
        page = customer.get(f"http://{HOST}:{site.port}/static/kapso_connect/pages.css")
    assert page.status == 200


def test_models_and_migrations_agree_in_the_wheel(site: NewSite) -> None:
    site.run(site.python, "manage.py", "makemigrations", "--check", "--dry-run")


def test_the_mixin_as_it_is_shown(site: NewSite) -> None:
    (section,) = re.findall(r"\n## In your own admin\n(.*?)\n## ", README, re.DOTALL)
    (site.project / "crm" / "models.py").write_text(COMPANY)
    site.follow(next(BLOCK.finditer(section)))
    # After the others, whose site must not load it while its table is missing.
    for words in (["makemigrations", "--verbosity", "0"], ["migrate", "--verbosity", "0"]):
        site.run(site.python, "manage.py", *words)
    shown = site.run(site.python, "manage.py", "shell", "--verbosity", "0", "-c", SHOW_COMPANIES)
    assert shown.splitlines() == ["200", "True", "Ada's Bakery Ltd company-1 es"]


def test_the_pages_are_made_its_own_as_it_is_shown(site: NewSite) -> None:
    (section,) = re.findall(r"\n## Make the pages yours\n(.*?)\n## ", README, re.DOTALL)
    urls = site.project / "mysite" / "urls.py"
    before = urls.read_text()
    for block in BLOCK.finditer(section):
        site.follow(block)
    added = 'from crm.views import welcome\nurlpatterns += [path("welcome/", welcome)]\n'
    urls.write_text(f"{urls.read_text()}\n{added}")
    try:
        shown = site.run(site.python, "manage.py", "shell", "--verbosity", "0", "-c", SHOW_PAGES)
    finally:
        urls.write_text(before)
    lines = [line for line in shown.splitlines() if not line.startswith(("Gone:", "Forbidden:"))]
    assert lines == ["OurConnectView", "410", "nobody", "302 /welcome/", "200"]


SHOW_PAGES = """
from django.test import Client
from kapso_connect.addresses import connect_path, identifying
from kapso_connect.models import Customer

client = Client(headers={"host": "127.0.0.1"})
customer = Customer.objects.create(name="Ada's Bakery", connect_key="key")
answer = client.get(connect_path(customer))
print(answer.resolver_match.func.view_class.__name__)
print(answer.status_code)
print("nobody" if client.get("/welcome/").status_code == 403 else "?")
answer = client.get(identifying("/welcome/", customer))
print(answer.status_code, answer["Location"])
print(client.get("/welcome/").status_code)
"""
COMPANY = """
from django.db import models


class Company(models.Model):
    legal_name = models.CharField(max_length=255)
    contact_email = models.EmailField()
    language = models.CharField(max_length=10)

    class Meta:
        verbose_name_plural = "companies"
"""
SHOW_COMPANIES = """
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.test import Client
from crm.models import Company

company = Company.objects.create(
    legal_name="Ada's Bakery Ltd", contact_email="ada@example.com", language="es-MX"
)
client = Client()
client.force_login(get_user_model().objects.get(username="staff"))
answer = client.get("/admin/crm/company/", headers={"host": "127.0.0.1"})
print(answer.status_code)
print("Not invited" in answer.content.decode())
customer = admin.site.get_model_admin(Company).make_customer(company)
print(customer.name, customer.external_customer_id, customer.language)
"""


def test_the_new_site_passes_its_checks(site: NewSite) -> None:
    assert "System check identified no issues" in site.log.read_text()


def test_the_two_commands_come_first() -> None:
    blocks = [block["text"].strip() for block in BLOCK.finditer(README)]
    assert blocks[:2] == [
        'python -m pip install -e ".[dev]" && python manage.py demo',
        'python -m pip install -e ".[dev]" && python -m pytest',
    ]


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert [path for path in pictures if not (ROOT / path).is_file()] == []


def test_every_signal_is_in_its_table() -> None:
    public = {
        name for name, value in vars(signals).items() if isinstance(value, signals.ConnectSignal)
    }
    assert first_column("Signals") == public


def test_every_setting_is_in_its_table_with_its_default() -> None:
    assert first_column("Settings") == set(conf.READERS)
    defaults = conf.Conf()
    for name, default in re.findall(r"^\| `([A-Z_]+)` \| `(.+?)` \|", README, re.MULTILINE):
        assert str(getattr(defaults, name.lower())) == default


def first_column(heading: str) -> set[str]:
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
