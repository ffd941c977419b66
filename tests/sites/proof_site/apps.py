from __future__ import annotations

from datetime import timedelta

from django.apps import AppConfig

NOT_SHOWN_YET_SECONDS = 1.0
"""How long the API may not show a new number yet; 30 seconds elsewhere."""


class ProofSite(AppConfig):
    name = "tests.sites.proof_site"
    label = "proof_site"

    def ready(self) -> None:
        from . import receivers

        receivers.connect_receivers()

        from kapso_connect.onboarding import remote_numbers

        remote_numbers.NOT_SHOWN_YET_WINDOW = timedelta(seconds=NOT_SHOWN_YET_SECONDS)
