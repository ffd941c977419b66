from __future__ import annotations

from django.apps import AppConfig


class ProofSite(AppConfig):
    name = "tests.sites.proof_site"
    label = "proof_site"

    def ready(self) -> None:
        from . import receivers

        receivers.connect_receivers()
