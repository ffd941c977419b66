"""Pages that show what the sandbox holds and what it delivered, with a button for each control."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import Any, TypeVar, cast

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import resolve
from django.utils.html import format_html, format_html_join

from . import forms
from .faults import Faults, Rule, descriptions
from .fields import ApiError
from .state import find, store
from .web import SandboxView

ROWS_SHOWN = 200
AnyForm = TypeVar("AnyForm", bound=forms.ControlForm)


def latest(rows: Any) -> list[Any]:
    return list(rows.values())[: -ROWS_SHOWN - 1 : -1]


def filled(request: HttpRequest, form: AnyForm) -> AnyForm:
    """Return the form as it was sent with this request, if it was refused; else ``form``."""
    sent = getattr(request, "refused_form", None)
    is_it = isinstance(sent, type(form)) and sent.target_id == form.target_id
    return cast(AnyForm, sent) if is_it else form


class IndexView(SandboxView):
    def get(self, request: HttpRequest) -> HttpResponse:
        customers = store.customers
        links = [(link, customers[link.customer_id].name) for link in latest(store.links)]
        numbers = latest(store.numbers())
        names = ("seed", "add_number", "default_webhook", "event", "reset")
        context = {
            "options": store.options,
            "customers": latest(customers),
            "links": [(link, name, forms.LinkForm.of(link, name)) for link, name in links],
            "numbers": [(n, customers.get(n.customer_id or "")) for n in numbers],
            "webhooks": [(w, forms.TestDeliveryForm.of(w)) for w in store.webhooks.values()],
            "deliveries": len(store.deliveries),
            "faults": faults_on(),
            "forms": {name: filled(request, forms.FORMS[name]()) for name in names},
        }
        return render(request, "kapso_sandbox/index.html", context)


class NumberPageView(SandboxView):
    def get(self, request: HttpRequest, phone_number_id: str) -> HttpResponse:
        number = store.numbers().get(phone_number_id)
        if number is None:
            context: dict[str, Any] = {"text": "This number does not exist, or not any more."}
            return render(request, "kapso_sandbox/message.html", context, status=404)
        context = {
            "number": number,
            "customer": store.customers.get(number.customer_id or ""),
            "webhooks": [
                w for w in store.webhooks.values() if w.phone_number_id == phone_number_id
            ],
            "forms": {
                name: filled(request, form) for name, form in forms.of_number(number).items()
            },
        }
        return render(request, "kapso_sandbox/number.html", context)


def with_code(text: str) -> str:
    """Return a part of a docstring in HTML: what is between double backticks as code."""
    parts = re.split(r"``(.+?)``", text)
    marked = (format_html("<code>{}</code>", p) if i % 2 else p for i, p in enumerate(parts))
    return format_html_join("", "{}", ((part,) for part in marked))


def faults_on() -> list[str]:
    """Return the names of the faults that are turned on."""
    usual = asdict(Faults())
    return [name for name, value in asdict(store.faults).items() if value != usual[name]]


class FaultsPageView(SandboxView):
    def get(self, request: HttpRequest) -> HttpResponse:
        about = descriptions(Faults)
        names = [field.name for field in fields(Faults) if field.name != "api"]
        switches = {name: forms.FaultForm(target=name) for name in names}
        rules = [
            (_set_fields(rule), forms.RemoveRuleForm.of(rule, place))
            for place, rule in enumerate(store.faults.api)
        ]
        context = {
            "faults": [
                (name, with_code(about.get(name, "")), filled(request, form))
                for name, form in switches.items()
            ],
            "rules": rules,
            "rule_help": with_code(descriptions(Rule).get("kind", "")),
            "forms": {
                name: filled(request, forms.FORMS[name]())
                for name in ("add_rule", "clear_faults", "rate_limit")
            },
            "on": faults_on(),
        }
        return render(request, "kapso_sandbox/faults.html", context)


def _set_fields(rule: Rule) -> dict[str, Any]:
    """Return what was given for a rule; the other fields have their defaults."""
    usual = vars(Rule(rule.kind))
    return {k: v for k, v in vars(rule).items() if k == "kind" or v != usual[k]}


class PressView(SandboxView):
    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        """Call the control of a form, and lead back to its page with a notice. If it is refused,
        show the page with the form as it was filled in."""
        form = find(forms.FORMS, name, "Form")(request.POST)
        button = request.POST.get("button", next(iter(form.buttons)))
        try:
            find(form.buttons, button, "Button")
            if form.is_valid():
                messages.success(request, form.press(button))
                return HttpResponseRedirect(form.back())
            messages.error(request, _errors(form))
        except ApiError as error:
            messages.error(request, f"{error.text}.")
        return _show_again(request, form)


def _show_again(request: HttpRequest, form: forms.ControlForm) -> HttpResponse:
    request.refused_form = form  # type: ignore[attr-defined]
    page = resolve(form.back().partition("#")[0])
    view: Any = page.func
    response: HttpResponse = view.view_class().get(request, **page.kwargs)
    return response


def _errors(form: forms.ControlForm) -> str:
    return " ".join(
        f"{form[name].label if name in form.fields else name}: {' '.join(map(str, texts))}"
        for name, texts in form.errors.items()
    )


class DeliveriesView(SandboxView):
    def get(self, request: HttpRequest) -> HttpResponse:
        rows = [
            (delivery.as_json(), forms.ResendForm(target=delivery.id))
            for delivery in latest(store.deliveries)
        ]
        return render(request, "kapso_sandbox/deliveries.html", {"rows": rows})


def elsewhere(request: HttpRequest) -> HttpResponse:
    """The target of the ``redirect`` fault; the request log shows whether a client followed it."""
    return HttpResponse("This is not the API.", content_type="text/plain")
