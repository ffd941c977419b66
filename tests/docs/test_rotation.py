"""The page "Change the webhook's secret", executed in the site of the tutorial as it stands."""

from __future__ import annotations

import shlex

from kapso_connect.kapso import KapsoClient
from kapso_connect.kapso.types import SecretFingerprint

from .support import DOCS, NewSite, blocks_of

PAGE = DOCS / "how-to" / "rotation.md"


def test_the_secret_of_the_tutorial_is_changed(site: NewSite) -> None:
    rotating = site.branch("rotation")
    create, variable, rotate = blocks_of(PAGE)
    with rotating.own_sandbox():
        old = rotating.environment["KAPSO_WEBHOOK_SECRET"]
        rotating.execute_block(create)
        new = rotating.output.strip()
        name, _, value = shlex.split(variable.text)[0].partition("=")
        both = value.replace("the-new-one", new).replace("the-old-one", old)
        assert both == f"{new} {old}"
        rotating.environment[name] = both
        with rotating.started():
            rotating.execute_block(rotate)
            assert secret_at_kapso(rotating).is_same(new)
        rotating.environment[name] = new  # without the old one
        with rotating.started():
            assert "arrived" in rotating.command("python manage.py kapso_webhook --test")


def secret_at_kapso(site: NewSite) -> SecretFingerprint:
    with KapsoClient(site.environment["KAPSO_API_KEY"], base_url=site.sandbox) as client:
        (webhook,) = client.list_webhooks()
    return webhook.secret_key
