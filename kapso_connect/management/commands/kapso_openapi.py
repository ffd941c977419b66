from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.urls import NoReverseMatch, resolve, reverse

from kapso_connect.api.schema import is_drf_spectacular_installed
from kapso_connect.management.base import KapsoCommand


class Command(KapsoCommand):
    help = (
        "Writes the OpenAPI 3.1 schema of this package's REST API, as it is mounted on this site. "
        "The site's own API is not included. Requires drf-spectacular."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--file", type=Path, help="File to write to (default: standard output)."
        )
        parser.add_argument(
            "--format",
            choices=["yaml", "json"],
            default="yaml",
            help="Output format (default: yaml).",
        )
        parser.add_argument(
            "--namespace",
            default="kapso_connect_api",
            help="The namespace given to include(), if the API is mounted more than once "
            "(default: kapso_connect_api).",
        )

    def handle(self, *args: Any, file: Path | None, namespace: str, **options: Any) -> None:
        if not is_drf_spectacular_installed():
            raise CommandError(
                'drf-spectacular is not installed. Run: pip install "django-kapso-connect[openapi]"'
            )
        try:
            url = reverse(f"{namespace}:schema")
        except NoReverseMatch:
            raise CommandError(
                f"The REST API is not mounted as {namespace}. Add "
                'path("api/whatsapp/", include("kapso_connect.api.urls")) to urlpatterns.'
            ) from None
        from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiYamlRenderer

        from kapso_connect.api.openapi import build_document

        view: Any = resolve(url).func
        renderer = OpenApiJsonRenderer() if options["format"] == "json" else OpenApiYamlRenderer()
        schema = renderer.render(
            build_document(view.cls.patterns, url.removesuffix("schema/")), renderer_context={}
        )
        if file is None:
            self.stdout.write(schema.decode())
            return
        try:
            file.write_bytes(schema)
        except OSError as error:
            raise CommandError(f"Could not write {file}: {error}") from None
