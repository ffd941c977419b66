"""The client for Kapso's API: typed values out, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from django.views.decorators.debug import sensitive_variables

from ..conf import API_CONNECT_TIMEOUT, API_READ_TIMEOUT, Conf, get_conf
from ..exceptions import KapsoNotFound
from .types import (
    KapsoCustomer,
    KapsoFunding,
    KapsoHealth,
    KapsoPhoneNumber,
    KapsoSentMessage,
    KapsoSetupLink,
    KapsoWebhook,
    KapsoWebhookDelivery,
    UnusableResponse,
    ValueT,
    parse,
)

API_PATH = "/platform/v1"
META_API_PATH = "/meta/whatsapp/v24.0"
"""Meta's Cloud API, as Kapso passes it on."""

MAX_DELIVERIES_PER_PAGE = 100

MAX_ATTEMPTS = 4
"""How often one request is made at most."""


def _member(answer: object, name: str) -> Any:
    if not isinstance(answer, Mapping) or name not in answer:
        raise UnusableResponse(f"the answer has no {name!r}")
    return answer[name]


def _data(answer: object) -> Any:
    return _member(answer, "data")


def _data_or_all(answer: object) -> Any:
    """Return ``data``, or the answer itself if it has none, as that about a number's health."""
    return answer["data"] if isinstance(answer, Mapping) and "data" in answer else answer


def _first_message(answer: object) -> Any:
    messages = _member(answer, "messages")
    if not isinstance(messages, list) or not messages:
        raise UnusableResponse("'messages' is not a list with an entry")
    return messages[0]


class KapsoClient:
    """A client for Kapso's API, with the API key of one Kapso project.

    ``budget`` is how many seconds all requests of this client may take together, retries and the
    waits before them included, counted from its creation: make one client per web request, task or
    command. One attempt has ``read_timeout`` seconds, or less if the budget ends earlier, and of
    these ``connect_timeout`` seconds for each IP address tried. Name resolution is left to the
    operating system, and its time is not limited; nor are headers that arrive byte by byte. All
    clients of a process share their connections. ``hidden`` are secrets that no error may quote
    from an answer; the API key is always one of them.

    Temporary failures are retried within the budget. A 429 was refused before anything happened, so
    every method is retried after its ``Retry-After``; so is a connection that could not be opened,
    and a 403 of something in front of Kapso. After a 5xx answer or a broken connection, GET, PATCH
    and DELETE are retried: repeating them changes nothing. A POST may have been carried out: it is
    never retried, and its error has ``outcome_unknown``. ``attempts`` limits how often one request
    is made; with 1 nothing is retried.

    Kapso allows a key 100 to 1,000 requests a minute. With ``paced``, for work on many objects, a
    request waits for the next minute once Kapso's answers say that only a tenth of them is left,
    which webhooks and customers' pages may need; if the budget ends before, KapsoRateLimited is
    raised without asking.

    Every method raises a KapsoError: KapsoCredentialsError (401, Kapso's own 403, no usable key),
    KapsoPlanError (402), KapsoNotFound (404), KapsoConflict (409), KapsoValidationError (400,
    422), KapsoRateLimited (429, or a wait that exceeds the budget), KapsoUnavailable (5xx, no
    answer, budget spent), KapsoBlocked (a 403 of something in front of Kapso),
    KapsoUnexpectedResponse (an answer that is not in the contract, such as a redirect: it is not
    followed, so that the key is sent to Kapso only).
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = Conf.api_base_url,
        budget: float = Conf.api_budget,
        connect_timeout: float = API_CONNECT_TIMEOUT,
        read_timeout: float = API_READ_TIMEOUT,
        hidden: Sequence[str] = (),
        attempts: int = MAX_ATTEMPTS,
        paced: bool = False,
    ) -> None:
        # Imported here because it imports requests, which is slow to load.
        from .http import Transport, rate_limit_of

        self._base_url = base_url.rstrip("/")
        self._transport = Transport(
            api_key,
            budget,
            connect_timeout,
            read_timeout,
            hidden,
            attempts,
            rate_limit_of(self._base_url, api_key),
            paced=paced,
        )

    @classmethod
    def from_settings(
        cls, *, budget: float | None = None, attempts: int = MAX_ATTEMPTS, paced: bool = False
    ) -> KapsoClient:
        """Return a client for ``settings.KAPSO_CONNECT``; ``budget`` defaults to API_BUDGET."""
        conf = get_conf()
        number_webhook = conf.number_webhook
        return cls(
            conf.api_key,
            base_url=conf.api_base_url,
            budget=conf.api_budget if budget is None else budget,
            hidden=[*conf.webhook_secret, *(number_webhook.secrets if number_webhook else ())],
            attempts=attempts,
            paced=paced,
        )

    def __repr__(self) -> str:
        return f"<KapsoClient {self._base_url}>"

    def __enter__(self) -> KapsoClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: the connections stay open for the next client."""

    # Customers

    def find_customer(self, external_customer_id: str) -> KapsoCustomer | None:
        """Return the customer with the ``external_customer_id`` that we gave it, or None."""
        found = self._pages(
            KapsoCustomer,
            "find customer",
            ["customers"],
            {"external_customer_id": external_customer_id},
        )
        # Compared here, too: if Kapso ignored the filter, it would be another customer.
        return next((c for c in found if c.external_customer_id == external_customer_id), None)

    def list_customers(self) -> Iterator[KapsoCustomer]:
        """Yield the project's customers, with one request for each hundred."""
        return self._pages(KapsoCustomer, "list customers", ["customers"], {})

    def create_customer(
        self, *, name: str, external_customer_id: str | None = None
    ) -> KapsoCustomer:
        """Create a customer. After ``outcome_unknown``, call ``find_customer`` before a retry."""
        customer = {"name": name}
        if external_customer_id is not None:
            customer["external_customer_id"] = external_customer_id
        return self._one(
            KapsoCustomer, "create customer", "POST", ["customers"], {"customer": customer}
        )

    def get_customer(self, customer_id: str) -> KapsoCustomer:
        """Return the customer with Kapso's ``customer_id``."""
        return self._one(KapsoCustomer, "get customer", "GET", ["customers", customer_id])

    def delete_customer(self, customer_id: str) -> None:
        """Delete a customer, and its setup links with it. Disconnect its numbers before."""
        self._call("delete customer", "DELETE", ["customers", customer_id])

    # Setup links

    @sensitive_variables()
    def create_setup_link(self, customer_id: str, options: Mapping[str, Any]) -> KapsoSetupLink:
        """Create a link; Kapso revokes the customer's active one. ``options`` are sent unchanged:
        see ``SetupLinkOptions.payload``. After ``outcome_unknown``, list the links before
        a retry."""
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
        """Yield the customer's links, optionally only those with ``status``, or created after a
        datetime."""
        return self._pages(
            KapsoSetupLink,
            "list setup links",
            ["customers", customer_id, "setup_links"],
            {"status": status, "created_after": created_after},
        )

    def update_setup_link(
        self, customer_id: str, setup_link_id: str, changes: Mapping[str, Any]
    ) -> KapsoSetupLink:
        """Change those fields of a link that Kapso lets you change, such as ``expires_at``."""
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
        """Yield the project's numbers, optionally only those of a customer, of a WhatsApp Business
        account, or created after a datetime. ``per_page`` is how many one request fetches."""
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
        """Return a number by Meta's id. A number that was just deleted may still be returned."""
        path = ["whatsapp", "phone_numbers", phone_number_id]
        return self._one(KapsoPhoneNumber, "get phone number", "GET", path)

    @sensitive_variables()
    def create_phone_number(
        self,
        customer_id: str,
        *,
        name: str,
        phone_number_id: str,
        business_account_id: str,
        access_token: str,
        kind: str = "production",
    ) -> KapsoPhoneNumber:
        """Connect a customer's number with Meta's credentials, without a setup link. For a ``kind``
        of "sandbox", both ids and the token are "sandbox". Raise KapsoConflict if the number is
        connected already, or the plan allows no more."""
        number = {
            "name": name,
            "kind": kind,
            "phone_number_id": phone_number_id,
            "business_account_id": business_account_id,
            "access_token": access_token,
        }
        return self._one(
            KapsoPhoneNumber,
            "create phone number",
            "POST",
            ["customers", customer_id, "whatsapp", "phone_numbers"],
            {"whatsapp_phone_number": number},
        )

    @sensitive_variables()
    def update_phone_number(
        self, phone_number_id: str, changes: Mapping[str, Any]
    ) -> KapsoPhoneNumber:
        """Change a number: ``name``, ``access_token``, ``inbound_processing_enabled``,
        ``calls_enabled`` and the like."""
        path = ["whatsapp", "phone_numbers", phone_number_id]
        body = {"whatsapp_phone_number": changes}
        return self._one(KapsoPhoneNumber, "update phone number", "PATCH", path, body)

    def delete_phone_number(self, phone_number_id: str) -> None:
        """Disconnect a number and remove it from Kapso."""
        path = ["whatsapp", "phone_numbers", phone_number_id]
        self._call("delete phone number", "DELETE", path)

    def get_phone_number_health(self, phone_number_id: str) -> KapsoHealth:
        """Return a number's health. Kapso allows 5 of these a second and 60 a minute."""
        path = ["whatsapp", "phone_numbers", phone_number_id, "health"]
        return self._one(KapsoHealth, "get phone number health", "GET", path, select=_data_or_all)

    def get_funding(self, business_account_id: str) -> KapsoFunding:
        """Return whether Kapso pays Meta for a WhatsApp Business account, as it does for those that
        were connected with ``meta_billing_mode="partner_managed"``."""
        path = ["whatsapp", "accounts", business_account_id, "funding"]
        return self._one(KapsoFunding, "get funding", "GET", path)

    # Webhooks

    def list_webhooks(self) -> Iterator[KapsoWebhook]:
        """Yield the project's webhooks, those of kind "meta" included."""
        return self._pages(KapsoWebhook, "list webhooks", ["whatsapp", "webhooks"], {})

    @sensitive_variables()
    def create_webhook(
        self, *, url: str, secret_key: str, events: Sequence[str], active: bool = True
    ) -> KapsoWebhook:
        """Create a project webhook with payloads of version 2. Kapso generates no secret, so
        ``secret_key`` is required. An unknown event raises KapsoValidationError."""
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

    def delete_webhook(self, webhook_id: str) -> None:
        """Remove a webhook of the project, or of a number."""
        self._call("delete webhook", "DELETE", ["whatsapp", "webhooks", webhook_id])

    def test_webhook(self, webhook_id: str, *, event_type: str | None = None) -> None:
        """Have Kapso send a test delivery. Return when it is queued, not when it has arrived."""
        operation, path = "test webhook", ["whatsapp", "webhooks", webhook_id, "test"]
        answer = self._call(
            operation, "POST", path, body={} if event_type is None else {"event_type": event_type}
        )
        data = answer.get("data") if isinstance(answer, Mapping) else None
        if not isinstance(data, Mapping) or data.get("success") is False:
            raise self._transport.unexpected_response(
                operation, "POST", "it did not confirm the delivery"
            )

    def list_number_webhooks(self, phone_number_id: str) -> Iterator[KapsoWebhook]:
        """Yield the webhooks of one number, which are for its messages and conversations."""
        path = ["whatsapp", "phone_numbers", phone_number_id, "webhooks"]
        return self._pages(KapsoWebhook, "list number webhooks", path, {})

    @sensitive_variables()
    def create_number_webhook(
        self,
        phone_number_id: str,
        *,
        url: str,
        secret_key: str,
        events: Sequence[str] = (),
        kind: str = "kapso",
        active: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> KapsoWebhook:
        """Create a webhook for a number's messages and conversations. One of kind "kapso" needs
        ``events``; one of kind "meta" gets Meta's own payloads, and has none. ``options`` are
        further fields of Kapso's, such as ``buffer_enabled``. The setting ``NUMBER_WEBHOOK`` does
        this for every connected number."""
        webhook = {
            "url": url,
            "kind": kind,
            "secret_key": secret_key,
            "active": active,
            "payload_version": "v2",
            **({"events": list(events)} if events else {}),
            **(options or {}),
        }
        path = ["whatsapp", "phone_numbers", phone_number_id, "webhooks"]
        body = {"whatsapp_webhook": webhook}
        return self._one(KapsoWebhook, "create number webhook", "POST", path, body)

    @sensitive_variables()
    def update_number_webhook(
        self, phone_number_id: str, webhook_id: str, changes: Mapping[str, Any]
    ) -> KapsoWebhook:
        """Change a webhook of a number; its ``kind`` cannot be changed."""
        path = ["whatsapp", "phone_numbers", phone_number_id, "webhooks", webhook_id]
        body = {"whatsapp_webhook": changes}
        return self._one(KapsoWebhook, "update number webhook", "PATCH", path, body)

    def delete_number_webhook(self, phone_number_id: str, webhook_id: str) -> None:
        """Remove a webhook of a number."""
        path = ["whatsapp", "phone_numbers", phone_number_id, "webhooks", webhook_id]
        self._call("delete number webhook", "DELETE", path)

    def list_webhook_deliveries(
        self,
        *,
        status: str | None = None,
        event: str | None = None,
        webhook_id: str | None = None,
        errors_only: bool = False,
        period: str | None = None,
    ) -> Iterator[KapsoWebhookDelivery]:
        """Yield what Kapso delivered to webhooks, or tried to, the newest first.

        ``status``: pending, delivered or failed. ``period``: 24h (Kapso's default), 7d or 30d.
        """
        filters = {
            "status": status,
            "event": event,
            "webhook_id": webhook_id,
            "errors_only": "true" if errors_only else None,
            "period": period,
        }
        return self._delivery_pages({k: v for k, v in filters.items() if v is not None})

    # Messages

    @sensitive_variables()
    def send_text(
        self,
        phone_number_id: str,
        *,
        to: str,
        body: str,
        preview_url: bool = False,
        reply_to: str | None = None,
        callback_data: str | None = None,
    ) -> KapsoSentMessage:
        """Send a text of at most 4096 characters, within 24 hours of the person's last message.

        ``to`` is the person's phone number with its country code, or their business-scoped user id.
        ``reply_to`` is the id of the message that is answered. ``callback_data`` comes back in the
        events of this message. An error of Meta's has its ``meta_code``. It is never sent twice:
        after ``outcome_unknown``, it may have been sent.
        """
        text: dict[str, Any] = {"body": body}
        if preview_url:
            text["preview_url"] = True
        message = {"type": "text", "text": text}
        return self.send_message(
            phone_number_id,
            to=to,
            message=message,
            reply_to=reply_to,
            callback_data=callback_data,
        )

    @sensitive_variables()
    def send_template(
        self,
        phone_number_id: str,
        *,
        to: str,
        name: str,
        language: str,
        components: Sequence[Mapping[str, Any]] = (),
        reply_to: str | None = None,
        callback_data: str | None = None,
    ) -> KapsoSentMessage:
        """Send an approved template, which needs no message of the person before.

        ``language`` is the template's, such as "en_US". ``components`` fill its placeholders, in
        Meta's form. For the rest see ``send_text``.
        """
        template: dict[str, Any] = {"name": name, "language": {"code": language}}
        if components:
            template["components"] = list(components)
        message = {"type": "template", "template": template}
        return self.send_message(
            phone_number_id,
            to=to,
            message=message,
            reply_to=reply_to,
            callback_data=callback_data,
        )

    @sensitive_variables()
    def send_message(
        self,
        phone_number_id: str,
        *,
        to: str,
        message: Mapping[str, Any],
        reply_to: str | None = None,
        callback_data: str | None = None,
    ) -> KapsoSentMessage:
        """Send a message of any type, in Meta's form: ``{"type": "image", "image": {…}}``.

        For texts and templates there are ``send_text`` and ``send_template``, which explain the
        other arguments.
        """
        body = {
            "messaging_product": "whatsapp",
            "recipient" if any(c.isalpha() for c in to) else "to": to,
            **message,
        }
        if reply_to is not None:
            body["context"] = {"message_id": reply_to}
        if callback_data is not None:
            body["biz_opaque_callback_data"] = callback_data
        path = [phone_number_id, "messages"]
        return self._one(
            KapsoSentMessage,
            "send message",
            "POST",
            path,
            body,
            select=_first_message,
            api_path=META_API_PATH,
        )

    # Requests and answers

    @sensitive_variables()
    def _one(
        self,
        kind: type[ValueT],
        operation: str,
        method: str,
        path: Sequence[str],
        body: Mapping[str, Any] | None = None,
        *,
        select: Callable[[Any], Any] = _data,
        api_path: str = API_PATH,
    ) -> ValueT:
        """Return the part of the answer that ``select`` returns; by default its ``data``."""
        # The answer is not assigned to a name: error reports show the locals of this frame.
        try:
            return parse(
                kind, select(self._call(operation, method, path, body=body, api_path=api_path))
            )
        except UnusableResponse as problem:
            reason = str(problem)
        raise self._transport.unexpected_response(operation, method, reason)

    def _pages(
        self,
        kind: type[ValueT],
        operation: str,
        path: Sequence[str],
        filters: Mapping[str, str | datetime | None],
        per_page: int = 100,
    ) -> Iterator[ValueT]:
        query = {name: _query_value(v) for name, v in filters.items() if v is not None}
        key = "phone_number_id" if kind is KapsoPhoneNumber else "id"
        before: Collection[object] = ()
        page = total = 1
        while page <= total:
            query |= {"page": str(page), "per_page": str(per_page)}
            try:
                items, total = _page(kind, self._call(operation, "GET", path, query=query))
            except UnusableResponse as problem:
                reason = str(problem)
                break
            # What is created meanwhile pushes entries on to the next page; they are yielded once.
            # Remembering all pages would take memory that grows with the list.
            fresh = [item for item in items if getattr(item, key) not in before]
            if not fresh and (items or page < total):
                # If it ended without an error, a part of the list would be taken for all of it.
                reason = "a page of the list is empty or came twice"
                break
            before = {getattr(item, key) for item in items}
            yield from fresh
            page += 1
        else:
            return
        raise self._transport.unexpected_response(operation, "GET", reason)

    def _delivery_pages(self, filters: Mapping[str, str]) -> Iterator[KapsoWebhookDelivery]:
        operation, path = "list webhook deliveries", ["webhook_deliveries"]
        query = {**filters, "limit": str(MAX_DELIVERIES_PER_PAGE)}
        before: Collection[str] = ()
        after: str | None = ""
        while after is not None:
            try:
                items, after = _delivery_page(self._call(operation, "GET", path, query=query))
            except UnusableResponse as problem:
                reason = str(problem)
                break
            ids = {item.id for item in items}
            if ids and ids <= set(before):
                reason = "a page of the list came twice"
                break
            yield from (item for item in items if item.id not in before)
            before = ids
            if after is not None:
                query["after"] = after
        else:
            return
        raise self._transport.unexpected_response(operation, "GET", reason)

    @sensitive_variables()
    def _call(
        self,
        operation: str,
        method: str,
        path: Sequence[str],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        api_path: str = API_PATH,
    ) -> Any:
        if any(part in ("", ".", "..") for part in path):
            # Encoding does not help: to every server and proxy, these mean another path.
            raise KapsoNotFound(
                f"Could not {operation}: an id cannot be empty or only dots, so Kapso was not "
                "asked. Check where the id comes from.",
                operation=operation,
            )
        url = f"{self._base_url}{api_path}/" + "/".join(
            quote(part, safe="", errors="replace") for part in path
        )
        if query:
            url += "?" + urlencode(query, errors="replace")
        return self._transport.call(operation, method, url, body)


def _query_value(value: str | datetime) -> str:
    return value if isinstance(value, str) else value.astimezone(timezone.utc).isoformat()


def _delivery_page(answer: object) -> tuple[list[KapsoWebhookDelivery], str | None]:
    """Return the values of one page, and the cursor of the next one, or None after the last."""
    data, paging = _member(answer, "data"), _member(answer, "paging")
    cursors = _member(paging, "cursors")
    if not isinstance(data, list):
        raise UnusableResponse("'data' is not a list")
    after = cursors.get("after") if isinstance(cursors, Mapping) else None
    if after is not None and not isinstance(after, str):
        raise UnusableResponse("the cursor 'after' is not a text")
    is_last = len(data) < MAX_DELIVERIES_PER_PAGE and paging.get("next") is None
    items = [parse(KapsoWebhookDelivery, entry) for entry in data]
    return items, None if is_last or not items else after


def _page(kind: type[ValueT], answer: object) -> tuple[list[ValueT], int]:
    """Return the values of one page, and how many pages there are."""
    data, total = _member(answer, "data"), _member(_member(answer, "meta"), "total_pages")
    if not isinstance(data, list):
        raise UnusableResponse("'data' is not a list")
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise UnusableResponse("'total_pages' is not a number of pages")
    return [parse(kind, entry) for entry in data], total
