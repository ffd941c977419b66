"""The errors of other libraries' ways to authenticate: the body and the codes of this API."""

from __future__ import annotations

from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import include, path
from rest_framework import authentication

from kapso_connect.api.urls import urls_for
from kapso_connect.models import Customer

from ..factories import make_user
from .support import Caller, code

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

CUSTOMER = {"name": "A"}


def ask(settings: Any, kind: type[Any], authorization: str) -> HttpResponse:
    mixin = type("Mixin", (), {"authentication_classes": [kind]})
    urlconf = ModuleType("other_authentication_urls")
    urlconf.urlpatterns = [path("api/whatsapp/", include(urls_for(mixin)))]  # type: ignore[attr-defined]
    settings.ROOT_URLCONF = urlconf
    return Caller().get("customers/", headers={"Authorization": authorization})


# Django REST framework's sessions: its error about CSRF has no code, only a text.


@pytest.fixture
def staff_with_csrf() -> Caller:
    caller = Caller(make_user("staff", "superuser"))
    caller.client = Client(enforce_csrf_checks=True)
    caller.client.force_login(caller.user)
    return caller


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "CSRF cookie not set."),
        ({"X-CSRFToken": "t" * 32}, "CSRF cookie not set."),
        ({"Origin": "https://elsewhere.example"}, "Origin checking failed"),
        ({"Origin": "null"}, "Origin checking failed"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_csrf_failures_have_a_code_and_say_why(
    staff_with_csrf: Caller, method: str, headers: dict[str, str], reason: str
) -> None:
    target = "customers/" if method == "POST" else "customers/1/"
    answer = staff_with_csrf.send(method, target, CUSTOMER, headers=headers)
    assert code(answer, 403) == "csrf_failed"
    assert answer.json()["message"].startswith(f"CSRF Failed: {reason}")
    assert not Customer.objects.exists()


def test_a_wrong_csrf_token(staff_with_csrf: Caller) -> None:
    staff_with_csrf.client.cookies["csrftoken"] = "t" * 32
    answer = staff_with_csrf.post("customers/", CUSTOMER, headers={"X-CSRFToken": "u" * 32})
    assert code(answer, 403) == "csrf_failed"


# Django REST framework's tokens


@pytest.mark.parametrize("header", ["Token", "Token a b"])
def test_malformed_tokens(settings: Any, header: str) -> None:
    answer = ask(settings, authentication.TokenAuthentication, header)
    assert code(answer, 401) == "authentication_failed"
    assert answer.headers["WWW-Authenticate"] == "Token"


def test_no_token(settings: Any) -> None:
    answer = ask(settings, authentication.TokenAuthentication, "")
    assert code(answer, 401) == "not_authenticated"
    assert answer.headers["WWW-Authenticate"] == "Token"


# djangorestframework-simplejwt


@pytest.fixture
def jwt() -> Any:
    return pytest.importorskip("rest_framework_simplejwt.authentication").JWTAuthentication


@pytest.fixture
def token(jwt: Any) -> Any:
    from rest_framework_simplejwt.tokens import AccessToken

    return AccessToken.for_user(make_user("staff", "superuser"))


def test_a_valid_token(settings: Any, jwt: Any, token: Any) -> None:
    assert ask(settings, jwt, f"Bearer {token}").status_code == 200


def test_a_wrong_and_an_expired_token(settings: Any, jwt: Any, token: Any) -> None:
    token.set_exp(lifetime=-timedelta(minutes=1))
    for header in ("Bearer wrong", f"Bearer {token}"):
        answer = ask(settings, jwt, header)
        assert code(answer, 401) == "token_not_valid"
        assert answer.json()["message"] == "Given token not valid for any token type"
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api"'


def test_no_token_and_a_malformed_header(settings: Any, jwt: Any) -> None:
    assert code(ask(settings, jwt, ""), 401) == "not_authenticated"
    assert code(ask(settings, jwt, "Bearer a b"), 401) == "bad_authorization_header"


def test_users_who_are_gone(settings: Any, jwt: Any, token: Any) -> None:
    user = make_user("other", "superuser")
    gone = type(token).for_user(user)
    user.is_active = False
    user.save()
    assert code(ask(settings, jwt, f"Bearer {gone}"), 401) == "user_inactive"
    user.delete()
    answer = ask(settings, jwt, f"Bearer {gone}")
    assert code(answer, 401) == "user_not_found"
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api"'
