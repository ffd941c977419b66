"""What the tests of the REST API share: who asks, and how."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.http import HttpResponse
from django.test import Client

API = "/api/whatsapp/"
ALL = ["superuser"]


class Caller:
    """A logged-in browser that speaks JSON with the API mounted at ``at``."""

    def __init__(self, user: Any = None, at: str = API) -> None:
        self.user = user
        self.at = at
        self.client = Client()
        if user is not None:
            self.client.force_login(user)

    def send(self, method: str, path: str, body: Any = None, **options: Any) -> HttpResponse:
        """``body`` goes as JSON; bytes go as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if body is None:
            data = b""
        options.setdefault("content_type", "application/json")
        return self.client.generic(method, self.at + path, data, **options)

    def get(self, path: str, **options: Any) -> HttpResponse:
        return self.client.get(self.at + path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> HttpResponse:
        return self.send("POST", path, body, **options)


def make_user(name: str = "staff", *permissions: str, **fields: Any) -> Any:
    """A member of staff with these permissions of the package, all with "superuser"."""
    model = get_user_model()
    if "superuser" in permissions:
        return model.objects.create_superuser(name, password="x")
    user = model.objects.create_user(name, **{"is_staff": True, **fields})
    found = Permission.objects.filter(
        content_type__app_label="kapso_connect", codename__in=permissions
    )
    assert len(found) == len(permissions)
    user.user_permissions.set(found)
    return user


def staff(*permissions: str) -> Caller:
    return Caller(make_user("staff", *(permissions or ALL)))


def code(response: HttpResponse, status: int) -> str:
    """The code of an error of this status; the body has the one shape that all of them have."""
    assert response.status_code == status, response.content
    body = response.json()
    assert set(body) == {"code", "message", "fields"}
    assert isinstance(body["message"], str)
    for path, problems in body["fields"].items():
        assert isinstance(path, str)
        assert [set(problem) for problem in problems] == [{"code", "message"}] * len(problems)
    return body["code"]
