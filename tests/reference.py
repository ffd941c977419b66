"""Write the parts of the documentation that come from the code: ``python -m tests.reference``.

What stands between ``<!-- from the code: settings -->`` and ``<!-- end -->`` in a page is what
``settings()`` below returns. Dotted names there stand for the functions and classes of these names;
``.*`` at the end of one, for its public members, too.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kapso_connect import dispatch

from . import ROOT

MARK = re.compile(r"(<!-- from the code:\s(.+?)\s-->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = {
    "_secrets": "a text, or a list of texts",
    "_paths": "a list of dotted paths",
    "_languages": "a list of language codes",
    "_flag": "True or False",
    "_mapping": "a dict",
    "_rates": "a dict",
    "_number_webhook": "a dict",
    "_positive": "a number",
    "_positive_int": "a whole number",
    "_days": "a whole number",
}
"""The types that the readers of settings accept; the others accept a string."""


def main() -> None:
    """Write all pages again."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        page.write_text(generated(page.read_text(encoding="utf-8")), encoding="utf-8")


def generated(page: str) -> str:
    """Return the text of a page with the parts as the code has them now."""
    return MARK.sub(lambda mark: f"{mark[1]}\n{part(mark[2])}\n\n{mark[3]}", page)


def part(names: str) -> str:
    made = PARTS[names]() if names in PARTS else "\n".join(map(described, names.split()))
    return re.sub(r"\n{3,}", "\n\n", made).strip()


# Functions and classes


def described(path: str) -> str:
    """Return heading, signature and docstring of a function or class, or a module's docstring; for
    ``path.*`` also those of what is public in it."""
    name = path.removesuffix(".*")
    it = pkgutil.resolve_name(name)
    if inspect.ismodule(it):
        shown = f"{inspect.getdoc(it)}\n"
        inside = [(key, one) for key, one in vars(it).items() if is_from(one, name)]
        level = "###"
    else:
        parent = pkgutil.resolve_name(name.rpartition(".")[0])
        shown = described_as("####" if inspect.isclass(parent) else "###", name, it)
        inside = [(key, getattr(it, key)) for key in vars(it)]
        level = "####"
    members = inside if path.endswith(".*") else []
    public = [(key, one) for key, one in members if key[0] != "_" and getattr(one, "__doc__", "")]
    return "\n".join([shown, *(described_as(level, key, one) for key, one in public)])


def is_from(it: Any, module: str) -> bool:
    return getattr(it, "__module__", "") == module


def described_as(level: str, name: str, it: Any) -> str:
    lines = [f"{level} {name.rpartition('.')[2]}", ""]
    if "__init__" in vars(it) if inspect.isclass(it) else callable(it):
        lines += [*signature_lines(it), ""]
    return "\n".join([*lines, inspect.getdoc(it) or "", ""])


FIXED_SPACE = "\N{NO-BREAK SPACE}"


class Spelled(str):
    """A text that a signature shows without quotation marks."""

    __repr__ = str.__str__


def signature_lines(it: Any) -> list[str]:
    """Return a signature as lines of Markdown, with the annotations as the code spells them."""
    found = inspect.signature(it)
    shown = found.replace(
        parameters=[
            one.replace(annotation=spelled(one.annotation), default=default_of(one))
            for name, one in found.parameters.items()
            if name != "self"
        ],
        return_annotation=(
            found.empty if inspect.isclass(it) else spelled(found.return_annotation)
        ),
    )
    # Only the spaces between parameters may become line breaks.
    text = re.sub(r"(?<!,) ", FIXED_SPACE, f"{it.__name__}{shown}")
    lines = textwrap.wrap(text, 76, subsequent_indent="    ", break_on_hyphens=False)
    return [f"    {line}".replace(FIXED_SPACE, " ") for line in lines]


def spelled(annotation: Any) -> Any:
    if isinstance(annotation, str):
        return Spelled(annotation.replace(" ", FIXED_SPACE))
    return annotation


def default_of(parameter: inspect.Parameter) -> Any:
    default = parameter.default
    if isinstance(default, str):
        return Spelled(json.dumps(default, ensure_ascii=False))
    is_an_object = default is not parameter.empty and repr(default).startswith("<")
    return Spelled("…") if is_an_object else default


# Settings


def settings() -> str:
    from kapso_connect.conf import READERS, Conf

    described = dict(definitions(inspect.getdoc(Conf) or ""))
    defaults = Conf()
    parts = []
    for name, reader in READERS.items():
        default = getattr(defaults, name.lower())
        kind = KINDS.get(reader.__name__, "a text")
        shown = f"`{default!r}`" if default not in ("", (), None) else "none"
        parts.append(f"## {name}\n\n{described.pop(name)}\n\n*{kind}; default: {shown}*\n")
    if described:
        raise ValueError(f"Described, but no settings: {', '.join(described)}")
    return "\n".join(parts)


def definitions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the terms of a docstring's definition list with their descriptions."""
    for found in re.finditer(
        r"^(``[\w.]+``(?:, ``[\w.]+``)*)\n((?:    .*\n?)+)", text, re.MULTILINE
    ):
        yield found[1].replace("``", ""), inspect.cleandoc("\n" + found[2])


def options() -> str:
    from kapso_connect.kapso import setup_link_options

    def values(constant: re.Match[str]) -> str:
        return ", ".join(f"`{value}`" for value in getattr(setup_link_options, constant[1]))

    return re.sub("``([A-Z_]+)``", values, table(setup_link_options.SetupLinkOptions, "Option"))


def table(described: Any, title: str) -> str:
    """Return a docstring with its definitions as a table."""
    text = inspect.getdoc(described) or ""
    lines = [text.partition("\n``")[0], "", f"| {title} | |", "| --- | --- |"]
    for names, description in definitions(text):
        shown = ", ".join(f"`{name}`" for name in names.split(", "))
        lines.append(f"| {shown} | {' '.join(description.split())} |")
    return "\n".join(lines)


def report() -> str:
    from kapso_connect.sync import Report

    return table(Report, "Field")


def faults() -> str:
    from kapso_connect.sandbox.faults import Faults, Rule

    return f"{table(Faults, 'Fault')}\n\n### Rules\n\n{table(Rule, 'Key')}"


def controls() -> str:
    from kapso_connect.sandbox.forms import FORMS
    from kapso_connect.sandbox.urls import controls

    buttons: dict[str, list[str]] = {}
    for form in FORMS.values():
        buttons.setdefault(form.endpoint, []).extend(form.buttons.values())
    lines = ["| Control | | Buttons |", "| --- | --- | --- |"]
    for entry in controls:
        for method in ("get", "post", "patch", "delete"):
            view = getattr(entry.callback.view_class, method, None)
            if view is not None:
                path = str(entry.pattern)
                shown = ", ".join(dict.fromkeys(buttons.get(f"{method.upper()} {path}", [])))
                called = f"`{method.upper()} /sandbox/{path}`"
                lines.append(f"| {called} | {inspect.getdoc(view)} | {shown} |")
    return "\n".join(lines)


# Signals


def signals() -> str:
    from kapso_connect import signals

    return "\n\n".join(
        f"### {name}\n\n{inspect.getdoc(signal)}"
        for name, signal in vars(signals).items()
        if isinstance(signal, dispatch.ConnectSignal)
    )


# Models


def models() -> str:
    from django.apps import apps

    return "\n".join(
        model_part(model) for model in apps.get_app_config("kapso_connect").get_models()
    )


def model_part(model: Any) -> str:
    lines = [f"## {model.__name__}", "", inspect.getdoc(model) or "", ""]
    lines += ["| Field | Type | |", "| --- | --- | --- |"]
    lines += [f"| `{field.name}` | {kind_of(field)} | {about(field)} |" for field in own(model)]
    lines.append("")
    for place, prefix in ((type(model.objects), "objects."), (model, "")):
        for name, member in vars(place).items():
            signature = signature_of(member)
            if not name.startswith("_") and signature is not None and inspect.getdoc(member):
                lines += [f"### {prefix}{name}{signature}".replace("*", r"\*"), ""]
                lines += [inspect.getdoc(member) or "", ""]
    if model._meta.permissions:
        names = ", ".join(f"`kapso_connect.{name}`" for name, _label in model._meta.permissions)
        lines += [f"Permissions besides Django's own: {names}.", ""]
    return "\n".join(lines)


def own(model: Any) -> Iterator[Any]:
    """Yield the model's fields; a generic foreign key instead of its two columns."""
    hidden = {"id"} | {
        name
        for field in model._meta.private_fields
        for name in (getattr(field, "ct_field", ""), getattr(field, "fk_field", ""))
    }
    for field in [*model._meta.private_fields, *model._meta.fields]:
        if field.name not in hidden:
            yield field


def kind_of(field: Any) -> str:
    if not field.concrete:
        return "any model"
    if field.related_model:
        return f"`{field.related_model.__name__}`" + (" or None" if field.null else "")
    kinds = {
        "CharField": f"text, up to {field.max_length}",
        "DateTimeField": "date and time",
        "InstantField": "date and time",
        "EmailField": "e-mail address",
        "JSONField": "JSON",
        "PositiveSmallIntegerField": "whole number",
        "BooleanField": "True or False",
        "TextField": "text",
        "URLField": "URL",
    }
    names = [one.__name__ for one in type(field).__mro__]
    kind = next((kinds[name] for name in names if name in kinds), f"`{names[0]}`")
    return f"{kind} or None" if field.null else kind


def about(field: Any) -> str:
    if not field.concrete:
        return "The site's own object that the customer belongs to, or None."
    text = str(field.help_text)
    if not text and str(field.verbose_name).replace(" ", "_") not in field.name:
        text = f"{str(field.verbose_name).capitalize()}."
    values = [f"`{value}`" for value, _label in getattr(field, "choices", None) or [] if value]
    return " ".join([text, *([f"One of {', '.join(values)}."] if values else [])]).replace(
        "|", "\\|"
    )


def signature_of(member: Any) -> str | None:
    """Return the parameters in parentheses; None for members that are not documented."""
    if isinstance(member, property):
        return ""
    if not inspect.isfunction(member):
        return None
    named = list(inspect.signature(member).parameters.values())[1:]
    return f"({', '.join(str(one).partition(':')[0] for one in named)})"


# Commands


def commands() -> str:
    from django.core.management import load_command_class
    from django.core.management.base import BaseCommand

    from kapso_connect.management import commands as package
    from kapso_connect.sandbox.__main__ import parser

    usual = {action.dest for action in BaseCommand().create_parser("", "")._actions}
    parts = []
    for module in pkgutil.iter_modules(package.__path__):
        one = load_command_class("kapso_connect", module.name).create_parser(
            "manage.py", module.name
        )
        parts.append(command_part(f"manage.py {module.name}", one, usual))
    parts.append(command_part("python -m kapso_connect.sandbox", parser(), {"help"}))
    return "\n".join(parts)


def command_part(name: str, parser: argparse.ArgumentParser, usual: set[str]) -> str:
    lines = [f"## {name}", "", parser.description or "", "", "| Option | |", "| --- | --- |"]
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.dest not in usual:
            called = ", ".join(action.option_strings) or action.dest
            value = action.metavar or (
                "{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper()
            )
            takes = f" {value}" if action.option_strings and action.nargs != 0 else ""
            text = formatter._expand_help(action).replace("|", "\\|")
            lines.append(f"| `{called}{takes}` | {text[:1].upper()}{text[1:]} |")
    return "\n".join([*lines, ""])


# Checks


EXCEPTIONS = {
    "E001": "`KAPSO_CONNECT` is not a dict, has an unknown key, or a value of the wrong type. The "
    "message says which.",
    "E012": "… has a composite primary key, and cannot own customers: the key of an owner has one "
    "column. Let an object with such a key own the customer instead.",
}


def checks() -> str:
    source = (ROOT / "kapso_connect" / "checks.py").read_text(encoding="utf-8")
    always, deployment = source.split('@register("kapso_connect", deploy=True)')
    # Those of a ModelAdmin are methods of it.
    mixin = (ROOT / "kapso_connect" / "admin" / "mixin.py").read_text(encoding="utf-8")
    found = sorted([*messages(always), *messages(mixin)])
    return "\n".join(
        [
            *checks_part("Errors", [one for one in found if ".E" in one[0]]),
            *checks_part("Warnings", [one for one in found if ".W" in one[0]]),
            *checks_part("Warnings of ``manage.py check --deploy``", sorted(messages(deployment))),
        ]
    )


def checks_part(title: str, found: Iterable[tuple[str, str, str]]) -> list[str]:
    lines = [f"## {title}", ""]
    for identity, message, hint in found:
        # Some messages are those of exceptions.
        text = message if message != "…" else EXCEPTIONS[identity.partition(".")[2]]
        lines += [f"### {identity}", "", text, ""]
        lines += [f"*What to do:* {hint}", ""] if hint else []
    return lines


def messages(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield the id, the message and the hint of each check in ``source``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {keyword.arg: words(keyword.value) for keyword in node.keywords}
            if given.get("id", "").startswith("kapso_connect."):
                yield given["id"], words(node.args[0]), given.get("hint", "")


def words(node: ast.expr) -> str:
    """Return the text in the code, with … instead of formatted values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            words(part) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return "…"


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part
    for part in (settings, options, report, faults, controls, signals, models, commands, checks)
}

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    main()
