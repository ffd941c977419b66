from __future__ import annotations

from io import StringIO
from typing import Any

from django.core.management import call_command

from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import registration

from ..factories import SECRET


def run_command(name: str, *arguments: object) -> str:
    """Run a management command in this process; return what it writes to stdout and stderr."""
    output = StringIO()
    call_command(name, *map(str, arguments), stdout=output, stderr=output)
    return output.getvalue()


def add_webhook(sandbox: Sandbox, url: str, **fields: Any) -> str:
    """Add to the sandbox a webhook that needs no repair, except for ``fields``; return its id."""
    from ..sandbox.support import Api

    good = {
        "url": url,
        "secret_key": SECRET,
        "events": list(registration.SUBSCRIBED_EVENTS),
        "payload_version": "v2",
    }
    body = {"whatsapp_webhook": {**good, **fields}}
    added: str = Api(sandbox)("POST", "/whatsapp/webhooks", body).json()["data"]["id"]
    return added
