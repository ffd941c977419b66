"""What the tests of the REST API share: a client, and a check of error bodies."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from kapso_connect.models import SetupLink, new_connect_key

from ..factories import make_customer, make_link, make_user

API = "/api/whatsapp/v1/"


class Caller:
    """A client that sends JSON to the API mounted at ``at``, logged in as ``user``."""

    def __init__(self, user: Any = None, at: str = API) -> None:
        self.user = user
        self.at = at
        self.client = Client()
        if user is not None:
            self.client.force_login(user)

    def send(self, method: str, path: str, body: Any = None, **options: Any) -> HttpResponse:
        """Send ``body`` as JSON, or unchanged if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if body is None:
            data = b""
        options.setdefault("content_type", "application/json")
        return self.client.generic(method, self.at + path, data, **options)

    def get(self, path: str, **options: Any) -> HttpResponse:
        return self.client.get(self.at + path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> HttpResponse:
        return self.send("POST", path, body, **options)


def staff(*permissions: str) -> Caller:
    """Return a member of staff with these permissions, or with all if none are given."""
    return Caller(make_user("staff", *(permissions or ["superuser"])))


def make_invited(**fields: Any) -> SetupLink:
    """Return the link of a customer with these ``fields`` who was invited two days ago."""
    values = {"email": "ada@example.com", "connect_key": new_connect_key(), **fields}
    link = make_link(make_customer(**values), created_at=timezone.now() - timedelta(days=2))
    link.customer.refresh_from_db()
    return link


def code(response: HttpResponse, status: int) -> str:
    """Check the status and the shape of an error body, and return its code."""
    assert response.status_code == status, response.content
    body = response.json()
    assert set(body) == {"code", "message", "fields"}
    assert isinstance(body["message"], str)
    for path, problems in body["fields"].items():
        assert isinstance(path, str)
        assert [set(problem) for problem in problems] == [{"code", "message"}] * len(problems)
    return body["code"]
