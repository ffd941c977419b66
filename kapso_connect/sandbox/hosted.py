"""The hosted setup page, on which a customer connects WhatsApp."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import requests
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils.translation import get_language_from_request

from . import fields, payloads
from .fields import Invalid
from .state import PhoneNumber, SetupLink, new_id, now, store
from .web import SandboxView
from .webhooks import sender

SETUP_ERROR_TEXTS = {
    "facebook_auth_failed": "The customer cancelled the Facebook login",
    "phone_verification_failed": "The phone number could not be verified",
    "waba_limit_reached": "The customer has too many WhatsApp accounts",
    "token_exchange_failed": "Kapso could not get a token from Facebook",
    "link_expired": "The link has expired",
    "already_used": "The link was used before",
}
CONNECTION_TYPE_LABELS = {
    "coexistence": "Coexistence: keep the WhatsApp Business app on the phone",
    "dedicated": "Dedicated: the number works by API only",
}
HEADINGS_BY_LANGUAGE = {
    "en": "Connect your WhatsApp number",
    "es": "Conecta tu número de WhatsApp",
    "pt": "Conecte seu número de WhatsApp",
    "hi": "अपना WhatsApp नंबर कनेक्ट करें",
    "id": "Hubungkan nomor WhatsApp Anda",
    "ar": "اربط رقم واتساب الخاص بك",
}
WEBHOOK_FIRST_TIMEOUT = 15


class SetupPageView(SandboxView):
    def get(self, request: HttpRequest, token: str) -> HttpResponse:
        return _with_usable_link(request, token, _form)

    def post(self, request: HttpRequest, token: str) -> HttpResponse:
        return _with_usable_link(request, token, _submit)


def _with_usable_link(
    request: HttpRequest, token: str, answer: Callable[[HttpRequest, SetupLink], HttpResponse]
) -> HttpResponse:
    link = next((link for link in store.links.values() if link.token == token), None)
    if link is None:
        return _message_page(request, "This link does not exist.", 404)
    status = link.current_status
    if status == "active":
        return answer(request, link)
    if status == "revoked":
        return _message_page(request, "This link was revoked.", 410)
    code = "already_used" if status == "used" else "link_expired"
    return _redirect_to_failure_url(request, link, code)


def _submit(request: HttpRequest, link: SetupLink) -> HttpResponse:
    outcome = request.POST.get("outcome", "")
    try:
        fields.choice("connect", *SETUP_ERROR_TEXTS)("outcome", outcome)
        return _connect(request, link) if outcome == "connect" else _fail(request, link, outcome)
    except Invalid as error:
        return _form(request, link, error.text)


def _form(request: HttpRequest, link: SetupLink, error: str = "") -> HttpResponse:
    language = link.language or get_language_from_request(request)
    context = {
        "link": link,
        "customer": store.customers[link.customer_id],
        "types": [(name, CONNECTION_TYPE_LABELS[name]) for name in link.allowed_connection_types],
        "chosen_type": request.POST.get("connection_type") or link.allowed_connection_types[0],
        "phone_number": request.POST.get("phone_number", _number_to_reconnect(link)),
        "display_name": request.POST.get("display_name", ""),
        "errors": SETUP_ERROR_TEXTS,
        "error": error,
        "language": language,
        "direction": "rtl" if language == "ar" else "ltr",
        "heading": HEADINGS_BY_LANGUAGE[language],
        "theme": {k.replace("_", "-"): v for k, v in (link.theme_config or {}).items()},
    }
    return render(request, "kapso_sandbox/setup.html", context, status=422 if error else 200)


def _connect(request: HttpRequest, link: SetupLink) -> HttpResponse:
    kind = request.POST.get("connection_type") or link.allowed_connection_types[0]
    fields.choice(*link.allowed_connection_types)("connection_type", kind)
    typed = re.sub(r"[\s().-]", "", request.POST.get("phone_number", ""))
    phone_number = fields.e164("phone_number", typed) if typed else None
    name = fields.text("display_name", request.POST.get("display_name", "").strip())
    if link.reconnect_phone_number:
        number = _number_of(link)
        if number is None or phone_number not in (None, _number_to_reconnect(link)):
            return _fail(request, link, "phone_verification_failed")
        event = _renew_credentials(number)
    else:
        number = _add(link, phone_number, kind == "coexistence", name)
        event = payloads.CREATED_EVENT
    if link.provision_phone_number:
        link.provisioned_phone_number = _provisioned(number)
    if link.meta_billing_mode == "partner_managed":
        store.funding.setdefault(number.business_account_id or "", "funded")
    link.status = "used"
    link.whatsapp_setup_status = "completed"
    link.whatsapp_setup_error = None
    deliveries = sender.emit(event, payloads.build(event, number)) if event else []
    if store.faults.webhook_first:
        store.wait_for(lambda: all(d.attempts for d in deliveries), WEBHOOK_FIRST_TIMEOUT)
    if not link.success_redirect_url:
        return _message_page(request, "Connected. You can close this page.")
    parameters = {
        "setup_link_id": link.id,
        "status": "completed",
        "phone_number_id": number.phone_number_id,
        "business_account_id": number.business_account_id,
        "provisioned_phone_number_id": (link.provisioned_phone_number or {}).get("id"),
        "display_phone_number": f"+{number.normalized}",
    }
    return _redirect(link.success_redirect_url, parameters)


def _number_to_reconnect(link: SetupLink) -> str:
    """Return in E.164 the number that the customer has to choose; "" if that is free."""
    return f"+{link.reconnect_phone_number}" if link.reconnect_phone_number else ""


def _number_of(link: SetupLink) -> PhoneNumber | None:
    """Return the number that the link reconnects, if it is still the customer's."""
    number = store.number_by_digits(link.reconnect_phone_number or "")
    return number if number and number.customer_id == link.customer_id else None


def _renew_credentials(number: PhoneNumber) -> str:
    """Reconnect a number in place; return the event to send: "" if it was connected all along."""
    event = "" if number.status == "CONNECTED" else payloads.RECONNECTED_EVENT
    number.change({"status": "CONNECTED", "access_error": ""})
    return event


def _add(link: SetupLink, phone_number: str | None, is_coexistence: bool, name: str) -> PhoneNumber:
    customer = store.customers[link.customer_id]
    return store.add_number(
        phone_number=phone_number,
        customer_id=customer.id,
        business_account_id=customer.business_account_id,
        verified_name=name or customer.name,
        is_coexistence=is_coexistence,
    )


def _provisioned(number: PhoneNumber) -> dict[str, Any]:
    return {
        "id": new_id(),
        "phone_number": f"+{number.normalized}",
        "status": "active",
        "area_code": number.normalized[1:4] if number.normalized.startswith("1") else None,
        "country_iso": "US",
        "country_dial_code": "1",
        "display_number": number.display_phone_number,
    }


def _fail(request: HttpRequest, link: SetupLink, code: str) -> HttpResponse:
    link.whatsapp_setup_status = "failed"
    link.whatsapp_setup_error = code
    if code == "link_expired":
        link.expires_at = now()
    elif code == "already_used":
        link.status = "used"
    return _redirect_to_failure_url(request, link, code)


def _redirect_to_failure_url(request: HttpRequest, link: SetupLink, code: str) -> HttpResponse:
    if not link.failure_redirect_url:
        return _message_page(request, f"{SETUP_ERROR_TEXTS[code]}.")
    return _redirect(link.failure_redirect_url, {"setup_link_id": link.id, "error_code": code})


def _message_page(request: HttpRequest, text: str, status: int = 200) -> HttpResponse:
    return render(request, "kapso_sandbox/message.html", {"text": text}, status=status)


def _redirect(url: str, parameters: dict[str, str | None]) -> HttpResponse:
    """Redirect to ``url`` with the parameters that are not None added to its query."""
    return HttpResponseRedirect(str(requests.Request("GET", url, params=parameters).prepare().url))
