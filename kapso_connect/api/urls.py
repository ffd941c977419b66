"""Mount with ``path("api/whatsapp/", include("kapso_connect.api.urls"))``."""

from __future__ import annotations

from inspect import getdoc
from typing import Any

from django.urls import URLPattern, URLResolver, include, path, re_path

from .views import (
    API_VERSION,
    Api,
    Batches,
    BatchInvitations,
    Connections,
    Customers,
    Events,
    NotFound,
    Root,
    Schema,
    SetupLinks,
)

app_name = "kapso_connect_api"

LIST = {"get": "list"}
LIST_CREATE = {"get": "list", "post": "create"}
RETRIEVE = {"get": "retrieve"}

ROUTES: list[tuple[str, type[Api], dict[str, str], str, str]] = [
    ("", Root, LIST, "root", "WhatsApp"),
    ("customers/", Customers, LIST_CREATE, "customers", "Customers"),
    (
        "customers/<str:pk>/",
        Customers,
        {"get": "retrieve", "patch": "partial_update"},
        "customer",
        "Customer",
    ),
    (
        "customers/<str:pk>/status/",
        Customers,
        {"get": "status"},
        "customer-status",
        "Onboarding status",
    ),
    (
        "customers/<str:pk>/send-invitation/",
        Customers,
        {"post": "send_invitation"},
        "customer-send-invitation",
        "E-mail the invitation",
    ),
    (
        "customers/<str:pk>/send-reminder/",
        Customers,
        {"post": "send_reminder"},
        "customer-send-reminder",
        "E-mail a reminder",
    ),
    ("setup-links/", SetupLinks, LIST_CREATE, "setup-links", "Setup links"),
    ("setup-links/<str:pk>/", SetupLinks, RETRIEVE, "setup-link", "Setup link"),
    (
        "setup-links/<str:pk>/revoke/",
        SetupLinks,
        {"post": "revoke"},
        "setup-link-revoke",
        "Revoke a setup link",
    ),
    ("batches/", Batches, LIST_CREATE, "batches", "Batches"),
    ("batches/<str:pk>/", Batches, RETRIEVE, "batch", "Batch"),
    ("batches/<str:pk>/invitations/", BatchInvitations, LIST, "batch-invitations", "Invitations"),
    ("batches/<str:pk>/work/", Batches, {"post": "work"}, "batch-work", "Work on a batch"),
    ("batches/<str:pk>/resume/", Batches, {"post": "resume"}, "batch-resume", "Resume a batch"),
    (
        "batches/<str:pk>/send-again/",
        Batches,
        {"post": "send_again"},
        "batch-send-again",
        "Send failed e-mails again",
    ),
    (
        "batches/<str:pk>/give-up/",
        Batches,
        {"post": "give_up"},
        "batch-give-up",
        "Give up the rest of a batch",
    ),
    ("connections/", Connections, LIST, "connections", "Connections"),
    ("connections/<str:pk>/", Connections, RETRIEVE, "connection", "Connection"),
    (
        "connections/<str:pk>/refresh/",
        Connections,
        {"post": "refresh"},
        "connection-refresh",
        "Refresh a connection",
    ),
    (
        "connections/<str:pk>/disconnect/",
        Connections,
        {"post": "disconnect"},
        "connection-disconnect",
        "Disconnect a number",
    ),
    ("events/", Events, LIST, "events", "Timeline"),
    ("schema/", Schema, {"get": "describe"}, "schema", "Schema"),
]
"""The path, the view, its actions by method, the name of the URL, and the title of the page."""


def urls_for(*mixins: type[Any]) -> tuple[list[URLPattern | URLResolver], str]:
    """Return the URLs of the API for ``include()``; its views inherit from ``mixins`` first.

    They are below ``v1/``. What comes after them in the site's URLs, with the same prefix, is not
    reached: everything else below the prefix is answered with an error of this API.
    """
    anything = NotFound.as_view(dict.fromkeys(NotFound.http_method_names, "refuse"))
    return [
        path(f"{API_VERSION}/", include(versioned_patterns(*mixins))),
        re_path(r"^(?P<path>(?s:.*))\Z", anything, name="not-found"),
    ], app_name


def versioned_patterns(*mixins: type[Any]) -> list[URLPattern]:
    """Return the URLs of the API below its version; see ``urls_for``."""
    views: dict[type[Api], Any] = {
        view: type(view.__name__, (*mixins, view), {"__doc__": view.__doc__})
        for _route, view, _actions, _name, _title in ROUTES
    }
    patterns = [
        path(
            route,
            views[view].as_view(
                dict(actions), name=title, description=_description(views[view], actions)
            ),
            name=name,
        )
        for route, view, actions, name, title in ROUTES
    ]
    views[Schema].patterns = patterns
    return patterns


def _description(view: type[Api], actions: dict[str, str]) -> str:
    """Return the text of a browsable page: the docstrings of its actions."""
    paragraphs: list[str] = []
    for method, action in actions.items():
        text = " ".join((getdoc(getattr(view, action)) or getdoc(view) or "").split())
        paragraphs.append(f"{method.upper()}: {text}" if paragraphs else text)
    return "\n\n".join(paragraphs)


urlpatterns, _app_name = urls_for()
