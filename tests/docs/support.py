"""The fenced blocks of README and docs, and a new project in which they are executed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from example_project.demo.processes import HOST, free_port, serving
from tests import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PATH = re.compile(r"(?:(?:#|//) (?P<code>\S+\.(?:py|js))|\{# (?P<template>\S+) #\})\n")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    heading: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def path(self) -> str:
        """The file that the block names in its first line, or ""."""
        named = PATH.match(self.text)
        return (named["code"] or named["template"]) if named else ""

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def pages() -> list[Path]:
    return [README, *sorted(DOCS.rglob("*.md"))]


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    page = path.relative_to(ROOT).as_posix()
    blocks = []
    for found in FENCE.finditer(text):
        before = text[: found.start()]
        bare = FENCE.sub("", before)  # comments in blocks are not headings
        headings = HEADING.findall(bare)
        inside = found["text"].splitlines(keepends=True)
        blocks.append(
            Block(
                page,
                before.count("\n") + 1,
                found["language"],
                "".join(line[len(found["indent"]) :] or "\n" for line in inside),
                headings[-1] if headings else "",
            )
        )
    return blocks


def blocks() -> Iterator[Block]:
    for path in pages():
        yield from blocks_of(path)


def write(block: Block, project: Path, continued: tuple[str, ...] = ("mysite/",)) -> None:
    """Write a block to its file in ``project``: at the end of a file of startproject, and of those
    whose path begins as one of ``continued``; else instead of the block of an earlier page."""
    path = project / block.path
    path.parent.mkdir(parents=True, exist_ok=True)
    is_continued = path.exists() and block.path.startswith(continued)
    path.write_text((path.read_text() + "\n" if is_continued else "") + block.text)


@dataclass
class NewSite:
    """A project in a virtual environment, with the package from a clone beside it.

    The pages are executed in it, line by line, with other ports.
    """

    folder: Path
    port: int
    sandbox_port: int
    stack: ExitStack
    name: str = "project"
    environment: dict[str, str] = field(default_factory=dict)
    output: str = ""
    continued: tuple[str, ...] = ("mysite/",)
    """How the paths of files begin to which a block is added, if they exist."""

    def branch(self, name: str) -> NewSite:
        """Return a copy of the project as it is now, in which another page is executed."""
        copy = replace(self, name=name, environment=dict(self.environment), output="")
        shutil.copytree(self.project, copy.project)
        return copy

    @contextmanager
    def own_sandbox(self) -> Iterator[None]:
        """Run a new sandbox for a copy, on ports of their own, as in the tutorial."""
        self.port, self.sandbox_port = free_port(0), free_port(0)
        (self.project / "sandbox.json").unlink()
        with ExitStack() as self.stack:
            self.execute("tutorial.md", first="5. Start the sandbox", last="5. Start the sandbox")
            self.set_variables()
            yield

    def set_variables(self) -> None:
        """Set the variables of the tutorial, without starting the site."""
        (start,) = (one for one in blocks_of(DOCS / "tutorial.md") if "runserver" in one.text)
        for line in start.lines:
            if line.startswith("export "):
                self.command(line)

    @contextmanager
    def started(self) -> Iterator[None]:
        """Run the site, with its settings and variables as they are now."""
        with ExitStack() as self.stack:
            self.command("python manage.py runserver")
            yield

    @property
    def project(self) -> Path:
        return self.folder / self.name

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def sandbox_log(self) -> Path:
        return self.folder / f"{self.name}-sandbox.log"

    @property
    def sandbox(self) -> str:
        return f"http://{HOST}:{self.sandbox_port}"

    def execute(self, page: str, first: str = "", last: str = "") -> None:
        """Execute a page's blocks, from the heading ``first`` to ``last``, or all of them."""
        at = [block.heading for block in blocks_of(DOCS / page)]
        begin = at.index(first) if first else 0
        end = len(at) - at[::-1].index(last) if last else len(at)
        for block in blocks_of(DOCS / page)[begin:end]:
            self.execute_block(block)

    def execute_block(self, block: Block) -> None:
        if block.language == "console":
            for line in block.lines:
                self.output = self.command(line)
        elif block.path:
            write(block, self.project, self.continued)
        elif block.language == "python":
            self.output = self.shell(block.text)
        else:
            raise AssertionError(f"{block}: this kind of block cannot be executed")

    def shell(self, code: str) -> str:
        return self.run(self.python, "manage.py", "shell", "--verbosity", "0", "-c", code)

    def command(self, line: str) -> str:
        line = line.replace(":8000", f":{self.port}").replace(":8900", f":{self.sandbox_port}")
        words = shlex.split(line)
        variables = {}
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.environment[name] = value
            return ""
        if words == ["source", ".venv/bin/activate"]:
            return ""
        assert words[0] == "python"
        if words[1:3] == ["-m", "venv"]:
            return self.make_environment()
        words[0] = self.python
        if words[1:4] == ["-m", "pip", "install"] and words[4].startswith("../"):
            return self.install(words[4])
        if words[1:] == ["manage.py", "runserver"]:
            return self.serve([*words, "--noreload", f"{HOST}:{self.port}"], self.port, self.log)
        if words[1:3] == ["-m", "kapso_connect.sandbox"]:
            words += ["--port", str(self.sandbox_port)]
            return self.serve(words, self.sandbox_port, self.sandbox_log)
        if words[1:] == ["manage.py", "createsuperuser"]:
            words.append("--noinput")
        if words[1:] == ["manage.py", "kapso_webhook", "--rotate"]:
            words.append("--yes")
        return self.run(*words, **variables)

    def make_environment(self) -> str:
        environment = self.folder / "venv"
        output = run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
        (packages,) = environment.glob("lib/python*/site-packages")
        # The dependencies are found; .pth files there, such as the one of this checkout, are not.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.project.mkdir()
        (self.folder / "django-kapso-connect").symlink_to(ROOT)  # the clone
        return output

    def install(self, clone: str) -> str:
        return self.run(
            *(sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps"),
            # Also if the environment of the tests has it, and without the network.
            *("--ignore-installed", "--no-build-isolation", "--quiet", clone),
        )

    def serve(self, words: list[str], port: int, log: Path) -> str:
        self.stack.enter_context(serving(words, self.variables(), port, log, self.project))
        return ""

    def run(self, *words: str, **variables: str) -> str:
        return run(list(words), cwd=self.project, env={**self.variables(), **variables})

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


def run(words: list[str], **options: object) -> str:
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}"
    return done.stdout
