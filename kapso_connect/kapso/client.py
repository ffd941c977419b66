"""Kapso's Platform API: requests in, typed values out, errors that say what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from django.views.decorators.debug import sensitive_variables

from ..conf import get_conf
from ..exceptions import KapsoNotFound
from .http import Transport, unexpected
from .types import (
    _SHAPES,
    KapsoCustomer,
    KapsoHealth,
    KapsoPhoneNumber,
    KapsoSetupLink,
    KapsoWebhook,
    _parse,
    _UnusableError,
)

API_PATH = "/platform/v1"
T = TypeVar("T")


class KapsoClient:
    """Speaks with Kapso's Platform API with the key of one Kapso project.

    ``budget`` is the API time in seconds that this client may spend in all, waiting for repeats
    included, from its creation on: make one per web request, task or command. One attempt gets
    ``connect_timeout`` seconds for each address tried and ``read_timeout`` seconds for the whole
    answer, less where the budget ends earlier. Connections are shared by all clients of the
    process. Name resolution is the operating system's and not bounded here. ``hidden`` are secrets
    that no error may quote from an answer; the API key is one without being named.

    What failed in passing is repeated within the budget. A 429 was refused before anything
    happened and repeats for every method after its ``Retry-After``; so does a connection that
    never came about. 5xx answers and broken connections repeat for GET, PATCH and DELETE: they
    name the state wanted, so twice is once. A POST may have been carried out: never repeated, its
    error has ``outcome_unknown``.

    Every method raises a KapsoError: KapsoCredentialsError (401, 403 or no usable key),
    KapsoPlanError (402), KapsoNotFound (404), KapsoConflict (409), KapsoValidationError (400,
    422), KapsoRateLimited (429, or a wait that does not fit the budget), KapsoUnavailable (5xx,
    no answer, budget spent), KapsoUnexpectedAnswer (whatever the contract does not know, a
    redirect included: the key goes nowhere else).
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = "https://api.kapso.ai",
        budget: float = 30.0,
        connect_timeout: float = 3.0,
        read_timeout: float = 10.0,
        hidden: Sequence[str] = (),
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._transport = Transport(api_key, budget, connect_timeout, read_timeout, hidden)

    @classmethod
    def from_settings(cls, *, budget: float | None = None) -> KapsoClient:
        """Return a client for ``settings.KAPSO_CONNECT``; ``budget`` defaults to API_BUDGET."""
        conf = get_conf()
        return cls(
            conf.api_key,
            base_url=conf.api_base_url,
            budget=conf.api_budget if budget is None else budget,
            hidden=conf.webhook_secret,
        )

    def __repr__(self) -> str:
        return f"<KapsoClient {self._base_url}>"

    def __enter__(self) -> KapsoClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the session. The connections stay open for the next client."""
        self._transport.close()

    # Customers

    def find_customer(self, external_customer_id: str) -> KapsoCustomer | None:
        """Return the customer that has our ``external_customer_id``, or None."""
        found = self._pages(
            KapsoCustomer,
            "find customer",
            ["customers"],
            {"external_customer_id": external_customer_id},
        )
        # Compared here as well: a filter that is not applied must not give us somebody else.
        return next((c for c in found if c.external_customer_id == external_customer_id), None)

    def list_customers(self) -> Iterator[KapsoCustomer]:
        """Yield the project's customers, a hundred to a request."""
        return self._pages(KapsoCustomer, "list customers", ["customers"], {})

    def create_customer(
        self, *, name: str, external_customer_id: str | None = None
    ) -> KapsoCustomer:
        """Create a customer. After ``outcome_unknown`` ask ``find_customer`` before repeating."""
        customer = {"name": name}
        if external_customer_id is not None:
            customer["external_customer_id"] = external_customer_id
        return self._one(
            KapsoCustomer, "create customer", "POST", ["customers"], {"customer": customer}
        )

    def get_customer(self, customer_id: str) -> KapsoCustomer:
        """Return the customer with Kapso's ``customer_id``."""
        return self._one(KapsoCustomer, "get customer", "GET", ["customers", customer_id])

    # Setup links

    @sensitive_variables()
    def create_setup_link(self, customer_id: str, options: Mapping[str, Any]) -> KapsoSetupLink:
        """Create a link; Kapso revokes the customer's active one. ``options`` go as they are: see
        ``SetupLinkOptions.payload``. After ``outcome_unknown`` list the links before repeating."""
        return self._one(
            KapsoSetupLink,
            "create setup link",
            "POST",
            ["customers", customer_id, "setup_links"],
            {"setup_link": options},
        )

    def list_setup_links(
        self,
        customer_id: str,
        *,
        status: str | None = None,
        created_after: datetime | None = None,
    ) -> Iterator[KapsoSetupLink]:
        """Yield the customer's links: those of one ``status``, created after a datetime."""
        return self._pages(
            KapsoSetupLink,
            "list setup links",
            ["customers", customer_id, "setup_links"],
            {"status": status, "created_after": created_after},
        )

    def update_setup_link(
        self, customer_id: str, setup_link_id: str, changes: Mapping[str, Any]
    ) -> KapsoSetupLink:
        """Change a link: ``expires_at``, ``theme_config`` and what else Kapso lets be changed."""
        return self._patch_setup_link("update setup link", customer_id, setup_link_id, changes)

    def revoke_setup_link(self, customer_id: str, setup_link_id: str) -> KapsoSetupLink:
        """Make a link unusable."""
        changes = {"status": "revoked"}
        return self._patch_setup_link("revoke setup link", customer_id, setup_link_id, changes)

    def _patch_setup_link(
        self, operation: str, customer_id: str, setup_link_id: str, changes: Mapping[str, Any]
    ) -> KapsoSetupLink:
        path = ["customers", customer_id, "setup_links", setup_link_id]
        return self._one(KapsoSetupLink, operation, "PATCH", path, {"setup_link": changes})

    # Phone numbers

    def list_phone_numbers(
        self,
        *,
        customer_id: str | None = None,
        business_account_id: str | None = None,
        created_after: datetime | None = None,
        per_page: int = 100,
    ) -> Iterator[KapsoPhoneNumber]:
        """Yield the project's numbers: a customer's, a WhatsApp account's, or those created after
        a datetime. ``per_page`` is how many one request fetches."""
        return self._pages(
            KapsoPhoneNumber,
            "list phone numbers",
            ["whatsapp", "phone_numbers"],
            {
                "customer_id": customer_id,
                "business_account_id": business_account_id,
                "created_after": created_after,
            },
            per_page,
        )

    def get_phone_number(self, phone_number_id: str) -> KapsoPhoneNumber:
        """Return a number by Meta's id. One being torn down can still be there for a moment."""
        path = ["whatsapp", "phone_numbers", phone_number_id]
        return self._one(KapsoPhoneNumber, "get phone number", "GET", path)

    def delete_phone_number(self, phone_number_id: str) -> None:
        """Disconnect a number and remove it from Kapso."""
        path = ["whatsapp", "phone_numbers", phone_number_id]
        self._call("delete phone number", "DELETE", path)

    def get_phone_number_health(self, phone_number_id: str) -> KapsoHealth:
        """Return a number's health. Kapso allows 5 of these a second and 60 a minute."""
        path = ["whatsapp", "phone_numbers", phone_number_id, "health"]
        # The one answer that the contract does not wrap.
        return self._one(KapsoHealth, "get phone number health", "GET", path, wrapped=False)

    # Webhooks

    def list_webhooks(self) -> Iterator[KapsoWebhook]:
        """Yield the project's webhooks, those of kind "meta" included."""
        return self._pages(KapsoWebhook, "list webhooks", ["whatsapp", "webhooks"], {})

    @sensitive_variables()
    def create_webhook(
        self, *, url: str, secret_key: str, events: Sequence[str], active: bool = True
    ) -> KapsoWebhook:
        """Create a project webhook with payloads of version 2. Kapso never makes up a secret:
        ``secret_key`` is ours. An event it does not know is a KapsoValidationError."""
        webhook = {
            "url": url,
            "kind": "kapso",
            "secret_key": secret_key,
            "events": list(events),
            "active": active,
            "payload_version": "v2",
        }
        body = {"whatsapp_webhook": webhook}
        return self._one(KapsoWebhook, "create webhook", "POST", ["whatsapp", "webhooks"], body)

    @sensitive_variables()
    def update_webhook(self, webhook_id: str, changes: Mapping[str, Any]) -> KapsoWebhook:
        """Change a webhook: ``url``, ``events``, ``active``, ``secret_key`` and the like."""
        path = ["whatsapp", "webhooks", webhook_id]
        return self._one(
            KapsoWebhook, "update webhook", "PATCH", path, {"whatsapp_webhook": changes}
        )

    def test_webhook(self, webhook_id: str, *, event_type: str | None = None) -> None:
        """Have Kapso send a test delivery; returns when it is queued, not when it arrived."""
        operation, path = "test webhook", ["whatsapp", "webhooks", webhook_id, "test"]
        answer = self._call(
            operation, "POST", path, body={} if event_type is None else {"event_type": event_type}
        )
        data = answer.get("data") if isinstance(answer, Mapping) else None
        if not isinstance(data, Mapping) or data.get("success") is False:
            raise unexpected(operation, "POST", "it did not confirm the delivery")

    @sensitive_variables()
    def _one(
        self,
        kind: type[T],
        operation: str,
        method: str,
        path: Sequence[str],
        body: Mapping[str, Any] | None = None,
        *,
        wrapped: bool = True,
    ) -> T:
        # The answer gets no name here: error reporters show the locals of a frame that raises.
        try:
            return _value(kind, self._call(operation, method, path, body=body), wrapped)
        except _UnusableError as problem:
            reason = str(problem)
        raise unexpected(operation, method, reason)

    def _pages(
        self,
        kind: type[T],
        operation: str,
        path: Sequence[str],
        filters: Mapping[str, str | datetime | None],
        per_page: int = 100,
    ) -> Iterator[T]:
        query = {name: _query_value(v) for name, v in filters.items() if v is not None}
        before: Collection[object] = ()
        page = total = 1
        while page <= total:
            query |= {"page": str(page), "per_page": str(per_page)}
            try:
                items, total = _page(kind, self._call(operation, "GET", path, query=query))
            except _UnusableError as problem:
                reason = str(problem)
                break
            # What is created meanwhile pushes entries on to the next page: once is enough. To
            # remember all pages would take memory that grows with the list.
            fresh = {key: item for key, item in items.items() if key not in before}
            if not fresh and (items or page < total):
                # Ending quietly would make part of a list look like the whole.
                reason = "a page of the list is empty or came twice"
                break
            before = items.keys()
            yield from fresh.values()
            page += 1
        else:
            return
        raise unexpected(operation, "GET", reason)

    @sensitive_variables()
    def _call(
        self,
        operation: str,
        method: str,
        path: Sequence[str],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        if any(part in ("", ".", "..") for part in path):
            # Encoding does not help: these mean another path to every server and proxy.
            raise KapsoNotFound(
                f"Could not {operation}: an empty id or one of dots only cannot exist, so Kapso "
                "was not asked. Check where the id comes from.",
                operation=operation,
            )
        url = f"{self._base_url}{API_PATH}/" + "/".join(
            quote(part, safe="", errors="replace") for part in path
        )
        if query:
            url += "?" + urlencode(query, errors="replace")
        return self._transport.call(operation, method, url, body)


def _query_value(value: str | datetime) -> str:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat()
    return value


def _member(answer: object, name: str) -> Any:
    if not isinstance(answer, Mapping) or name not in answer:
        raise _UnusableError(f"the answer has no {name!r}")
    return answer[name]


def _value(kind: type[T], answer: object, wrapped: bool) -> T:
    return _parse(kind, _member(answer, "data") if wrapped else answer)


def _page(kind: type[T], answer: object) -> tuple[dict[object, T], int]:
    """Return the values of one page by the id that is each kind's first field, and how many pages
    there are."""
    data, total = _member(answer, "data"), _member(_member(answer, "meta"), "total_pages")
    if not isinstance(data, list):
        raise _UnusableError("'data' is not a list")
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise _UnusableError("'total_pages' is not a number of pages")
    identity = next(iter(_SHAPES[kind]))
    return {getattr(item, identity): item for item in (_parse(kind, e) for e in data)}, total
