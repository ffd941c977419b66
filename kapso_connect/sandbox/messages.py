"""What people write to a number, what is sent from it through Meta's API, and the events of both.

Any template is taken for an approved one. A message to what cannot be a phone number is accepted,
and fails afterwards, as at Meta.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import phonenumbers
from django.http import HttpRequest, HttpResponse

from . import fields, payloads
from .fields import ApiError, Invalid
from .state import Conversation, Delivery, PhoneNumber, find_number, now, store
from .web import SandboxView, json_response, read_object, timestamp
from .webhooks import sender

MAX_MESSAGE_LENGTH = 4096
MAX_CALLBACK_LENGTH = 512
REPLY_WINDOW = timedelta(hours=24)
MESSAGE_TYPES = ("text", "template")

INVALID_PARAMETER = 100
UNDELIVERABLE = 131026
OUTSIDE_WINDOW = 131047
NOT_REGISTERED = 133010
META_ERROR_TITLES = {
    INVALID_PARAMETER: "Invalid parameter",
    UNDELIVERABLE: "Message undeliverable",
    OUTSIDE_WINDOW: "Re-engagement message",
    NOT_REGISTERED: "Account not registered",
}
"""Meta's error codes and their titles."""


def _object(spec: fields.Spec, *required: str) -> fields.Check:
    """Return a check of an object that has these fields; what ``spec`` does not name is allowed."""

    def check(name: str, value: object) -> object:
        data = fields.mapping(name, value)
        for field in required:
            if field not in data:
                raise Invalid(f"{name}.{field} is required")
        for field, check_field in spec.items():
            if field in data:
                check_field(f"{name}.{field}", data[field])
        return value

    return check


def _up_to(length: int, *, may_be_empty: bool = False) -> fields.Check:
    def check(name: str, value: object) -> object:
        if not isinstance(value, str) or not (value or may_be_empty):
            raise Invalid(f"{name} must be a text")
        if len(value) > length:
            raise Invalid(f"{name} must be at most {length} characters long")
        return value

    return check


_component = _object(
    {
        "type": fields.choice("header", "body", "button"),
        "sub_type": fields.text,
        "index": fields.instance_of((int, str), "a whole number"),
        "parameters": fields.list_of(
            _object(
                {"type": fields.text, "parameter_name": fields.text, "text": fields.text}, "type"
            )
        ),
    },
    "type",
)
MESSAGE_SPEC: fields.Spec = {
    "messaging_product": fields.choice("whatsapp"),
    "recipient_type": fields.choice("individual", "group"),
    "to": fields.non_empty,
    "recipient": fields.non_empty,
    "type": fields.choice(*MESSAGE_TYPES),
    "context": _object({"message_id": fields.non_empty}, "message_id"),
    "biz_opaque_callback_data": _up_to(MAX_CALLBACK_LENGTH, may_be_empty=True),
    "text": _object({"body": _up_to(MAX_MESSAGE_LENGTH), "preview_url": fields.boolean}, "body"),
    "template": _object(
        {
            "name": fields.non_empty,
            "language": _object({"code": fields.non_empty}, "code"),
            "components": fields.list_of(_component),
        },
        *("name", "language"),
    ),
}


class MetaRefusal(Exception):
    """A message that Meta refuses, with an error code of Meta's."""

    def __init__(self, code: int, details: str, status: int = 400) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.status = status

    def as_response(self) -> HttpResponse:
        error = {
            "message": f"(#{self.code}) {META_ERROR_TITLES[self.code]}",
            "type": "OAuthException",
            "code": self.code,
            "error_data": {"messaging_product": "whatsapp", "details": self.details},
            "fbtrace_id": secrets.token_urlsafe(12),
        }
        return json_response({"error": error}, self.status)


class MessagesView(SandboxView):
    def post(self, request: HttpRequest, phone_number_id: str) -> object:
        number = find_number(phone_number_id)
        try:
            data = read_object(request)
            person = _check(number, data)
        except Invalid as error:
            return MetaRefusal(INVALID_PARAMETER, error.text).as_response()
        except MetaRefusal as refusal:
            return refusal.as_response()
        message_id = _send(number, person, data)
        contact = {"input": data.get("to", data.get("recipient"))}
        if "to" in data:
            contact["wa_id"] = person
        return {
            "messaging_product": "whatsapp",
            "contacts": [contact],
            "messages": [{"id": message_id}],
        }


def _check(number: PhoneNumber, data: dict[str, Any]) -> str:
    """Return who a message is for, or refuse it as Meta or Kapso do."""
    _object(MESSAGE_SPEC, "messaging_product", "type")("message", data)
    person = _digits(data["to"]) if "to" in data else data.get("recipient")
    if not person:
        raise Invalid("message.to must be a phone number, or message.recipient a user's id")
    if data["type"] not in data:
        raise Invalid(f"message.{data['type']} is required")
    if number.status != "CONNECTED":
        raise MetaRefusal(NOT_REGISTERED, "The phone number is not connected")
    if data["type"] == "text":
        _check_window(number, person)
    elif not number.is_production:
        raise ApiError(422, "Templates can't be sent from sandbox numbers")
    return str(person)


def _check_window(number: PhoneNumber, person: str) -> None:
    """Refuse a free text to a person who has not written to the number recently."""
    conversation = _find_conversation(number, person)
    heard_at = conversation.last_inbound_at if conversation else None
    if heard_at is None or heard_at < now() - REPLY_WINDOW:
        details = "More than 24 hours have passed since the person last wrote to this number"
        raise MetaRefusal(OUTSIDE_WINDOW, details, 422)


def _digits(phone_number: str) -> str:
    return re.sub(r"\D", "", phone_number)


# Conversations


def _find_conversation(number: PhoneNumber, person: str) -> Conversation | None:
    for conversation in store.conversations.values():
        if (conversation.phone_number_id, conversation.person) == (number.phone_number_id, person):
            return conversation
    return None


def _conversation(number: PhoneNumber, person: str) -> tuple[Conversation, bool]:
    """Return the conversation, and whether it is a new one."""
    if known := _find_conversation(number, person):
        return known, False
    conversation = Conversation(number.phone_number_id, person)
    store.conversations[conversation.id] = conversation
    return conversation, True


def _describe_person(person: str) -> dict[str, str]:
    if person.isdigit():
        return {"phone_number": f"+{person}"}
    return {"business_scoped_user_id": person}


def _conversation_json(conversation: Conversation) -> dict[str, Any]:
    last = conversation.last_message
    return {
        "id": conversation.id,
        **_describe_person(conversation.person),
        "status": "active",
        "last_active_at": timestamp(conversation.updated_at),
        "created_at": timestamp(conversation.created_at),
        "updated_at": timestamp(conversation.updated_at),
        "metadata": {},
        "phone_number_id": conversation.phone_number_id,
        "kapso": {
            "contact_name": None,
            "messages_count": conversation.messages_count,
            "last_message_id": last.get("id"),
            "last_message_type": last.get("type"),
            "last_message_timestamp": timestamp(conversation.updated_at) if last else None,
            "last_message_text": last.get("text", {}).get("body"),
            "last_inbound_at": _moment(conversation.last_inbound_at),
            "last_outbound_at": _moment(conversation.last_outbound_at),
        },
    }


def _moment(value: datetime | None) -> str | None:
    return timestamp(value) if value else None


# Messages and their events

INBOUND = {
    "direction": "inbound",
    "status": "received",
    "processing_status": "pending",
    "origin": "cloud_api",
    "has_media": False,
}
OUTBOUND = {
    "direction": "outbound",
    "processing_status": "completed",
    "origin": "cloud_api",
    "has_media": False,
}
"""What Kapso adds to every message that was received, and that was sent."""


def receive_message(number: PhoneNumber, sender: str, body: str) -> list[Delivery]:
    """Let the person with the phone number ``sender`` write ``body`` to ``number``.

    Return the deliveries to the number's webhooks. One that collects messages for a batch gets its
    delivery when the batch is full, or its time over. Raise Invalid.
    """
    person = _digits(sender)
    if not person:
        raise Invalid("from must be a phone number")
    if not body:
        raise Invalid("body can't be blank")
    conversation, is_new = _conversation(number, person)
    message = _new_message("text", {"body": body})
    message["from"] = person
    conversation.change({"last_inbound_at": now(), "last_message": message})
    conversation.messages_count += 1
    value = {
        "contacts": [{"profile": {"name": f"+{person}"}, "wa_id": person}],
        "messages": [message],
    }
    events: list[Event] = []
    if is_new:
        created = _conversation_payload(conversation)
        events.append((payloads.CONVERSATION_CREATED_EVENT, created, None))
    shown = {**message, "kapso": {**INBOUND, "content": body}}
    payload = _message_payload(conversation, shown, is_new)
    events.append((payloads.MESSAGE_RECEIVED_EVENT, payload, value))
    return _deliver(number, events)


def _send(number: PhoneNumber, person: str, data: dict[str, Any]) -> str:
    """Take a message; deliver the events of what becomes of it. Return its id."""
    conversation, is_new = _conversation(number, person)
    message = _new_message(data["type"], data[data["type"]])
    message |= {"from": number.normalized}
    if person.isdigit():
        message["to"] = person
    conversation.change({"last_outbound_at": now(), "last_message": message})
    conversation.messages_count += 1
    events: list[Event] = []
    history: list[dict[str, Any]] = []
    for status in ("sent", "delivered", "read") if _is_deliverable(person) else ("failed",):
        history = [*history, _status(message["id"], person, status, data)]
        shown = {**message, "kapso": {**OUTBOUND, "status": status, "statuses": history}}
        payload = _message_payload(conversation, shown, is_new)
        events.append((f"whatsapp.message.{status}", payload, {"statuses": history[-1:]}))
    _deliver(number, events)
    message_id: str = message["id"]
    return message_id


def sample(event: str, number: PhoneNumber) -> dict[str, Any]:
    """Return the body of a test delivery of one of a number's events."""
    conversation = Conversation(number.phone_number_id, "15551234567")
    if not event.startswith("whatsapp.message."):
        return _conversation_payload(conversation)
    message, status = _new_message("text", {"body": "Test"}), event.rpartition(".")[2]
    if event == payloads.MESSAGE_RECEIVED_EVENT:
        message |= {"from": conversation.person, "kapso": INBOUND}
    else:
        history = [_status(message["id"], conversation.person, status, {})]
        kapso = {**OUTBOUND, "status": status, "statuses": history}
        message |= {"to": conversation.person, "kapso": kapso}
    return _message_payload(conversation, message, True)


def _new_message(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"wamid.{secrets.token_hex(16).upper()}",
        "timestamp": _unix_time(),
        "type": kind,
        kind: content,
    }


def _unix_time() -> str:
    return str(int(now().timestamp()))


def _is_deliverable(person: str) -> bool:
    if not person.isdigit():
        return True  # a business-scoped user id
    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(f"+{person}", None))
    except phonenumbers.NumberParseException:
        return False


def _status(message_id: str, person: str, status: str, data: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": message_id,
        "status": status,
        "timestamp": _unix_time(),
        "recipient_id": person,
    }
    if "biz_opaque_callback_data" in data:
        values["biz_opaque_callback_data"] = data["biz_opaque_callback_data"]
    if status == "failed":
        title = META_ERROR_TITLES[UNDELIVERABLE]
        values["errors"] = [{"code": UNDELIVERABLE, "title": title, "message": title}]
    return values


def _conversation_payload(conversation: Conversation) -> dict[str, Any]:
    return {
        "conversation": _conversation_json(conversation),
        "phone_number_id": conversation.phone_number_id,
    }


def _message_payload(
    conversation: Conversation, message: dict[str, Any], is_new: bool
) -> dict[str, Any]:
    return {
        "message": message,
        **_conversation_payload(conversation),
        "is_new_conversation": is_new,
    }


Event = tuple[str, dict[str, Any], "dict[str, Any] | None"]
"""A name, Kapso's body, and the value of Meta's body, if Meta has such an event."""


def _deliver(number: PhoneNumber, events: list[Event]) -> list[Delivery]:
    """Send the events to the number's webhooks, each in the form that it is for."""
    deliveries: list[Delivery] = []
    for webhook in store.webhooks.values():
        if not webhook.active or webhook.phone_number_id != number.phone_number_id:
            continue
        if webhook.kind == "meta":
            wanted = [(name, _meta_body(number, value)) for name, _, value in events if value]
        else:
            wanted = [(name, payload) for name, payload, _ in events if name in webhook.events]
        deliveries += sender.emit_in_order(webhook, wanted)
    return deliveries


def _meta_body(number: PhoneNumber, value: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "display_phone_number": number.normalized,
        "phone_number_id": number.phone_number_id,
    }
    change = {
        "field": "messages",
        "value": {"messaging_product": "whatsapp", "metadata": metadata, **value},
    }
    entry = {"id": number.business_account_id, "changes": [change]}
    return {"object": "whatsapp_business_account", "entry": [entry]}
