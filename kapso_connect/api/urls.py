"""Mount with ``path("api/whatsapp/", include("kapso_connect.api.urls"))``."""

from __future__ import annotations

from typing import Any

from django.urls import URLPattern, path

from .views import Api, Connections, Customers, Events, Root, Schema, SetupLinks

app_name = "kapso_connect_api"

LIST = {"get": "list"}
LIST_CREATE = {"get": "list", "post": "create"}
RETRIEVE = {"get": "retrieve"}
CHANGE = {"get": "retrieve", "put": "update", "patch": "partial_update"}

ROUTES: list[tuple[str, type[Api], dict[str, str], str]] = [
    ("", Root, LIST, "root"),
    ("customers/", Customers, LIST_CREATE, "customers"),
    ("customers/<str:pk>/", Customers, CHANGE, "customer"),
    ("customers/<str:pk>/status/", Customers, {"get": "status"}, "customer-status"),
    ("setup-links/", SetupLinks, LIST_CREATE, "setup-links"),
    ("setup-links/<str:pk>/", SetupLinks, RETRIEVE, "setup-link"),
    ("setup-links/<str:pk>/revoke/", SetupLinks, {"post": "revoke"}, "setup-link-revoke"),
    ("connections/", Connections, LIST, "connections"),
    ("connections/<str:pk>/", Connections, RETRIEVE, "connection"),
    ("connections/<str:pk>/refresh/", Connections, {"post": "refresh"}, "connection-refresh"),
    (
        "connections/<str:pk>/disconnect/",
        Connections,
        {"post": "disconnect"},
        "connection-disconnect",
    ),
    ("events/", Events, LIST, "events"),
    ("schema/", Schema, {"get": "describe"}, "schema"),
]


def urls_for(*mixins: type[Any]) -> tuple[list[URLPattern], str]:
    """Return the URLs of the API for ``include()``; its views inherit from ``mixins`` first."""
    views: dict[type[Api], Any] = {
        view: type(view.__name__, (*mixins, view), {"__doc__": view.__doc__})
        for _route, view, _actions, _name in ROUTES
    }
    patterns = [
        path(route, _as_view(views[view], actions), name=name)
        for route, view, actions, name in ROUTES
    ]
    views[Schema].patterns = patterns
    return patterns, app_name


def _as_view(view: type[Api], actions: dict[str, str]) -> Any:
    """Return the view of one URL, with the title and the description of its browsable page."""
    operations = {method: view.operations[action] for method, action in actions.items()}
    first, *others = operations
    paragraphs = [operations[first].description]
    paragraphs += [f"{method.upper()}: {operations[method].description}" for method in others]
    return view.as_view(
        dict(actions), name=operations[first].title, description="\n\n".join(paragraphs)
    )


urlpatterns, _app_name = urls_for()
