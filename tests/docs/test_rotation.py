"""The page "Change the webhook's secret", executed in the site of the tutorial as it stands."""

from __future__ import annotations

import shlex
from contextlib import ExitStack

from example_project.demo.processes import free_port
from kapso_connect.kapso import KapsoClient
from kapso_connect.kapso.types import SecretFingerprint

from .support import DOCS, NewSite, blocks_of

PAGE = DOCS / "how-to" / "rotation.md"


def test_the_secret_of_the_tutorial_is_changed(site: NewSite) -> None:
    rotating = site.branch("rotation")
    rotating.port, rotating.sandbox_port = free_port(0), free_port(0)
    (rotating.project / "sandbox.json").unlink()
    create, variable, rotate = blocks_of(PAGE)
    sandbox, start = (
        block
        for block in blocks_of(DOCS / "tutorial.md")
        if block.heading in ("5. Start the sandbox", "6. Start your site")
    )
    with ExitStack() as stack:
        rotating.stack = stack
        rotating.execute_block(sandbox)
        for line in start.lines[:-1]:
            rotating.command(line)
        old = rotating.environment["KAPSO_WEBHOOK_SECRET"]

        rotating.execute_block(create)
        new = rotating.output.strip()
        name, _, value = shlex.split(variable.text)[0].partition("=")
        both = value.replace("the-new-one", new).replace("the-old-one", old)
        assert both == f"{new} {old}"
        rotating.environment[name] = both
        with ExitStack() as rotating.stack:
            rotating.command(start.lines[-1])  # restarted, with both
            rotating.execute_block(rotate)
            assert secret_at_kapso(rotating).is_same(new)
        rotating.stack = stack
        rotating.environment[name] = new
        rotating.command(start.lines[-1])  # restarted, without the old one
        assert "arrived" in rotating.command("python manage.py kapso_webhook --test")


def secret_at_kapso(site: NewSite) -> SecretFingerprint:
    with KapsoClient(site.environment["KAPSO_API_KEY"], base_url=site.sandbox) as client:
        (webhook,) = client.list_webhooks()
    return webhook.secret_key
