from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.urls import NoReverseMatch, resolve, reverse

from kapso_connect.api.inspection import is_installed


class Command(BaseCommand):
    help = (
        "Writes the OpenAPI 3.1 schema of the REST API, as it is mounted on this site; nothing of "
        "the site's own API is in it. Needs drf-spectacular."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--file", type=Path, help="Where to (default: standard output).")
        parser.add_argument(
            "--format", choices=["yaml", "json"], default="yaml", help="yaml (default) or json."
        )
        parser.add_argument(
            "--namespace",
            default="kapso_connect_api",
            help="Which one, where the API is mounted more than once: the namespace that "
            "include() was given (default kapso_connect_api).",
        )

    def handle(self, *args: Any, file: Path | None, namespace: str, **options: Any) -> None:
        if not is_installed():
            raise CommandError(
                'drf-spectacular is missing: pip install "django-kapso-connect[openapi]"'
            )
        try:
            url = reverse(f"{namespace}:schema")
        except NoReverseMatch:
            raise CommandError(
                f"The REST API is not mounted as {namespace}: add "
                'path("api/whatsapp/", include("kapso_connect.api.urls")) to the site\'s urls.'
            ) from None
        from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiYamlRenderer

        from kapso_connect.api.schema import make

        view: Any = resolve(url).func
        renderer = OpenApiJsonRenderer() if options["format"] == "json" else OpenApiYamlRenderer()
        written = renderer.render(
            make(view.cls.patterns, url.removesuffix("schema/")), renderer_context={}
        )
        if file is None:
            self.stdout.write(written.decode())
            return
        try:
            file.write_bytes(written)
        except OSError as error:
            raise CommandError(f"{file} cannot be written: {error}") from None
