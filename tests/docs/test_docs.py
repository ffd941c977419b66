"""The documentation builds, and its code blocks are right.

Of the pages that ``test_readme`` executes, only the commands are tested here.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.template import Template, engines
from django.template.loader_tags import BlockNode, ExtendsNode
from django.test import override_settings
from django.urls import resolve
from django.utils.module_loading import import_string
from mkdocs.__main__ import cli as mkdocs
from packaging.requirements import Requirement

from kapso_connect import conf
from kapso_connect.monitoring import metrics
from kapso_connect.sandbox.__main__ import parser as sandbox_parser

from ..benchmarks.__main__ import parser as benchmarks_parser
from ..log_events import DOCUMENTED
from .support import DOCS, ROOT, Block, blocks, blocks_of, pages, write

EXECUTED = {
    f"docs/{name}.md"
    for name in (
        "tutorial",
        "how-to/own-model",
        "how-to/self-service",
        "how-to/wizard",
        "how-to/messages",
        "how-to/templates",
        "how-to/languages",
        "how-to/migrating",
    )
}
"""Pages that ``test_readme`` executes; the files in README are those of the tutorial."""

OWN_APPS = ("crm", "chat")
"""The apps of the reader's that the pages have code for."""

BLOCKS = list(blocks())


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def each(found: list[Block]) -> Any:
    assert found
    return pytest.mark.parametrize("block", found, ids=str)


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as it is built; a broken link fails the build."""
    folder = tmp_path_factory.mktemp("docs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    made = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    assert made == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | {"404.md"}


def test_no_page_asks_another_site_for_anything(site: Path) -> None:
    asked = set()
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text())
        assert tags
        asked |= {tag for tag in tags if re.search(r'(?:src|href)="?(?:https?:)?//', tag)}
    for sheet in site.rglob("*.css"):
        asked |= set(re.findall(r"""url\(["']?(?:https?:)?//|@import""", sheet.read_text()))
    assert asked == set()


# Blocks


def test_every_block_is_in_a_language_that_is_tested() -> None:
    known = {"python", "console", "text", "html+django", "json", "javascript"}
    assert [f"{block}: {block.language}" for block in BLOCKS if block.language not in known] == []
    fences = [line for page in pages() for line in page.read_text().splitlines() if "```" in line]
    assert len(BLOCKS) * 2 == len(fences), "a fence was not parsed"


def test_python_blocks_pass_mypy(tmp_path: Path) -> None:
    """In one project, with the files of the executed pages."""
    make_project(tmp_path)
    names = {}
    for block in of("python"):
        if block.page not in EXECUTED and block.page != "README.md":
            place = Path(block.path or "shell.py")
            name = re.sub(r"\W", "_", f"{block.page.removesuffix('.md')}_{block.line}")
            module = tmp_path / place.with_name(f"{place.stem}_{name}.py")
            names[module.relative_to(tmp_path).as_posix()] = str(block)
            module.parent.mkdir(parents=True, exist_ok=True)
            known = f"from {'.'.join(place.with_suffix('').parts)} import *  # noqa\n"
            module.write_text((known if block.path.startswith("mysite/") else "") + block.text)
    assert names
    (tmp_path / "mypy.ini").write_text(MYPY)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**_environment(), "PYTHONPATH": f"{ROOT}:{tmp_path}", "MYPYPATH": str(ROOT)},
    )
    output = re.sub(
        r"^\S+?\.py",
        lambda f: f"{f[0]} ({names.get(f[0], 'an executed page')})",
        done.stdout,
        flags=re.M,
    )
    assert done.returncode == 0, output + done.stderr


MYPY = """
[mypy]
plugins = mypy_django_plugin.main
check_untyped_defs = True
exclude = manage
[mypy-kapso_connect.*]
follow_imports = silent
[mypy-health_check.*,celery.*,unfold.*]
ignore_missing_imports = True
[mypy.plugins.django-stubs]
django_settings_module = mysite.settings
"""


def make_project(folder: Path) -> None:
    start = [sys.executable, "-m", "django", "startproject", "mysite", "."]
    subprocess.run(start, cwd=folder, check=True, env=_environment())
    for name, untyped, typed in (
        ("settings", "ALLOWED_HOSTS = ", "ALLOWED_HOSTS: list[str] = "),
        ("urls", "urlpatterns = ", "urlpatterns: list[Any] = "),
    ):
        retype(folder / "mysite" / f"{name}.py", untyped, typed)
    for app in OWN_APPS:
        (folder / app).mkdir()
        (folder / app / "__init__.py").touch()
    for page in ("tutorial", "how-to/own-model", "how-to/wizard", "how-to/messages"):
        for block in blocks_of(DOCS / f"{page}.md"):
            if block.path.endswith(".py"):
                write(block, folder, ("mysite/", "chat/models.py"))
    for block in blocks_of(DOCS / "how-to" / "multi-tenant-api.md"):
        # One of its files imports another.
        if block.path and not (folder / block.path).exists():
            write(block, folder)
    # Other pages assign values of other types.
    retype(
        folder / "mysite" / "settings.py",
        "\nKAPSO_CONNECT = ",
        "\nKAPSO_CONNECT: dict[str, Any] = ",
    )


def retype(path: Path, untyped: str, typed: str) -> None:
    text = path.read_text()
    assert untyped in text
    path.write_text(f"from typing import Any\n{text.replace(untyped, typed)}")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}


SHARED = {"KAPSO_CONNECT", "urlpatterns", "INSTALLED_APPS", "MIDDLEWARE", "DATABASES", "TEMPLATES"}
"""What a site has already when a reader copies a block into it."""


def replaced(code: str) -> set[str]:
    """Return the names of SHARED that ``code`` gives a value without what they had before."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            kept = {one.id for one in ast.walk(node.value or node) if isinstance(one, ast.Name)}
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            assigned = {one.id for one in targets if isinstance(one, ast.Name)}
            names |= (assigned & SHARED) - kept
    return names


def test_only_the_first_block_of_settings_replaces_what_a_site_has() -> None:
    """That of the tutorial, which README shows, too: the others extend settings and add URLs."""
    (first,) = (
        block.text
        for block in blocks_of(DOCS / "tutorial.md")
        if block.text.startswith("# mysite/settings.py\nimport os\n")
    )
    assert replaced(first) == {"KAPSO_CONNECT"}
    others = [block for block in of("python") if block.text != first]
    assert [f"{block}: {replaced(block.text)}" for block in others if replaced(block.text)] == []


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("KAPSO_CONNECT = {'SITE_NAME': 'A'}", {"KAPSO_CONNECT"}),
        ("KAPSO_CONNECT: dict = {}", {"KAPSO_CONNECT"}),
        ("urlpatterns = [path('a/', view)]", {"urlpatterns"}),
        ("KAPSO_CONNECT |= {}\nKAPSO_CONNECT['SITE_NAME'] = 'A'\nurlpatterns += []", set()),
        ("urlpatterns = [path('a/', view), *urlpatterns]", set()),
    ],
)
def test_a_block_that_replaces_is_found(code: str, names: set[str]) -> None:
    assert replaced(code) == names


@each([block for block in of("python") if block.path == "mysite/settings.py"])
def test_settings_are_accepted_by_the_package(block: Block) -> None:
    known: dict[str, Any] = {
        "INSTALLED_APPS": [],
        "MIDDLEWARE": [],
        "DATABASES": {"default": {}},
        "TEMPLATES": [{}],
        "BASE_DIR": ROOT,
        "KAPSO_CONNECT": {},
    }
    exec(block.text, known)
    with override_settings(KAPSO_CONNECT=known["KAPSO_CONNECT"]):
        conf.get_conf()
    for app in known["INSTALLED_APPS"]:
        assert app in OWN_APPS or importlib.util.find_spec(app), app
    for backend in known.get("TASKS", {}).values():
        if not backend["BACKEND"].startswith("crm."):  # test_queues runs that one
            import_string(backend["BACKEND"])


@each(of("html+django"))
def test_templates_override_blocks_that_exist(block: Block) -> None:
    assert block.path.startswith(("templates/", "crm/templates/"))
    template: Template = engines["django"].from_string(block.text).template
    parents = template.nodelist.get_nodes_by_type(ExtendsNode)
    if not parents:
        return
    parent = engines["django"].get_template(parents[0].parent_name.var).template
    existing = set()
    while parent is not None:
        existing |= {node.name for node in parent.nodelist.get_nodes_by_type(BlockNode)}
        grandparents = parent.nodelist.get_nodes_by_type(ExtendsNode)
        parent = (
            engines["django"].get_template(grandparents[0].parent_name.var).template
            if grandparents
            else None
        )
    assert {node.name for node in template.nodelist.get_nodes_by_type(BlockNode)} <= existing


def test_javascript_is_on_the_pages_whose_blocks_a_browser_runs() -> None:
    """``tests/browser/test_other_origins.py``, ``test_popup.py`` and ``test_rest_api.py`` run every
    one of them."""
    assert {block.page for block in of("javascript")} == {
        "docs/how-to/front-end.md",
        "docs/how-to/popup.md",
        "docs/how-to/rest-api.md",
    }


def test_json_is_json() -> None:
    for block in of("json"):
        json.loads(block.text)


# Blocks of text


def crontab(block: Block) -> list[str]:
    """Return the command lines of a crontab; none if ``block`` is something else."""
    pattern = r"(?:[\d*/,-]+ ){5}cd /\S+ && venv/bin/(.+)"
    lines = [re.fullmatch(pattern, line) for line in block.lines]
    return [line[1] for line in lines if line] if all(lines) else []


REQUEST = re.compile(
    r"(GET|POST|PUT|PATCH|DELETE) (/\S+)\n((?:[\w-]+: .+\n)*)(?:\n(.+))?", re.DOTALL
)
VARIABLE = re.compile(r"(KAPSO_[A-Z_]+)=\S.*")
REQUESTS = [block for block in of("text") if REQUEST.fullmatch(block.text)]
LOG_RECORDS = [block for block in of("text") if block.text.startswith("{")]
VARIABLES = [block for block in of("text") if all(map(VARIABLE.fullmatch, block.lines))]
CRONTABS = [block for block in of("text") if crontab(block)]
ALERTS = [block for block in of("text") if block.text.startswith("kapso_connect_")]


def test_every_block_of_text_is_tested() -> None:
    tested = [*REQUESTS, *LOG_RECORDS, *VARIABLES, *CRONTABS, *ALERTS]
    assert [str(block) for block in of("text") if block not in tested] == []


@each(REQUESTS)
def test_requests_are_for_views_of_the_api(block: Block) -> None:
    request = REQUEST.fullmatch(block.text)
    assert request
    method, path, headers, body = request.groups()
    view = resolve(path, "tests.urls").func
    assert view.__module__.startswith("kapso_connect.")
    assert method.lower() in getattr(view, "actions", {})
    if body:
        assert "Content-Type: application/json\n" in headers
        json.loads(body)


@each(LOG_RECORDS)
def test_log_records_have_the_fields_of_their_event(block: Block) -> None:
    record = json.loads(block.text)
    usual = {"asctime", "levelname", "name", "message", "kapso_event"}
    assert usual < set(record)
    assert DOCUMENTED[record["kapso_event"]] == set(record) - usual


@each(VARIABLES)
def test_variables_are_those_of_the_tutorial(block: Block) -> None:
    names = {line.partition("=")[0] for line in block.lines}
    assert names <= set(re.findall(r"KAPSO_[A-Z_]+", (DOCS / "tutorial.md").read_text()))


@pytest.mark.django_db
@each(ALERTS)
def test_alerts_use_metrics_that_exist(block: Block) -> None:
    existing = {metric.name for metric in metrics.QueueCollector().collect()}
    used = set(re.findall(r"kapso_connect_\w+", block.text))
    assert used
    assert used <= existing


# Commands


COMMANDS = [
    *((block, line) for block in of("console") for line in block.lines),
    *((block, line) for block in of("text") for line in crontab(block)),
]


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=[f"{b} {c}" for b, c in COMMANDS])
def test_commands_and_their_options_exist(block: Block, line: str) -> None:
    for command in line.split(" && "):
        words = shlex.split(command)
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        check_command(words)


def check_command(words: list[str]) -> None:
    if words[0] == "export":
        assert re.fullmatch(r"[A-Z_]+=\S+", words[1])
    elif words[:2] == ["python", "manage.py"]:
        check_management_command(words[2], words[3:])
    elif words[:2] == ["python", "-m"]:
        MODULES[words[2]](words[3:])
    elif words[:2] == ["python", "-c"]:
        (code,) = words[2:]
        exec(code, {})
    else:
        assert words == ["source", ".venv/bin/activate"]


def check_management_command(name: str, words: list[str]) -> None:
    if name not in {"db_worker", "rqworker"}:  # test_queues runs these
        app = "example_project.demo" if name == "demo" else get_commands()[name]
        load_command_class(app, name).create_parser("manage.py", name).parse_args(words)


def check_requirements(words: list[str]) -> None:
    assert words.pop(0) == "install"
    for word in words:
        if word == "-e":
            continue
        wanted = Requirement(re.sub(r"^\.", "django-kapso-connect", word.removeprefix("../")))
        assert wanted.extras <= set(
            distribution(wanted.name).metadata.get_all("Provides-Extra") or []
        )


PYTEST: list[list[str]] = [[], ["--ds=mysite.settings"]]
MODULES: dict[str, Callable[[list[str]], Any]] = {
    "django": lambda words: check_management_command(words[0], words[1:]),
    "kapso_connect.sandbox": sandbox_parser().parse_args,
    "celery": lambda words: None,  # test_queues runs it
    "mkdocs": lambda words: mkdocs.commands[words[0]].make_context("mkdocs", words[1:]),
    "pip": check_requirements,
    "tests.benchmarks": benchmarks_parser().parse_args,
    "pytest": lambda words: None if words in PYTEST else pytest.fail(str(words)),
    "venv": lambda words: None if words == [".venv"] else pytest.fail(str(words)),
}


@pytest.mark.parametrize(
    "line",
    [
        "python manage.py kapso_sink",
        "python manage.py kapso_sync --quietly",
        "python -m pip install 'django-kapso-connect[queue]'",
        "python -m kapso_connect.sandbox --colour",
        "python -m mkdocs serve --softly",
        "python -m tests.benchmarks everything",
        "rm -r venv",
    ],
)
def test_a_wrong_command_fails(line: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check_command(shlex.split(line))


# Guarantees


def test_the_tests_that_the_guarantees_name_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (DOCS / "guarantees.md").read_text())
    assert len(named) > 40
    tests = ROOT / "tests"
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not re.search(rf"^def {test}\(", (tests / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_every_promise_is_tested() -> None:
    _title, _how_it_works, *promising, _versions = (
        (DOCS / "guarantees.md").read_text().split("\n## ")
    )
    assert [part.splitlines()[0] for part in promising if "Tested by `" not in part] == []
    for part in promising:
        promises = re.split(r"^(?=\*\*)", part, flags=re.MULTILINE)[1:]
        assert [promise for promise in promises if "Tested by" not in promise] == []
