"""The forms for creating and extending setup links."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.contrib.admin.widgets import AdminRadioSelect
from django.http import QueryDict
from django.utils.formats import date_format

from .. import theme
from ..exceptions import InvalidOptions
from ..kapso.languages import Language
from ..kapso.setup_link_options import DEFAULT_COUNTRY, SetupLinkOptions, provisioning_problem
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..utils import (
    MAX_URL_LENGTH,
    from_local_time,
    to_local_time,
    today,
    validate_same_site_url,
)
from .colors import COLORS


class ColorInput(forms.TextInput):
    input_type = "color"


class SetupLinkForm(forms.Form):
    """The options of new setup links that staff may choose; the others are the site's
    ``SETUP_LINK_DEFAULTS``, passed as ``defaults``.

    ``recipients`` is how many of the customers have an e-mail address; None if the user may not
    send them the link.
    """

    BOTH = "coexistence,dedicated"

    connection_types = forms.ChoiceField(
        label=gettext_lazy("Ways to connect"),
        widget=AdminRadioSelect(attrs={"class": "radiolist"}),
        choices=[
            (BOTH, gettext_lazy("Both: the customer chooses.")),
            (
                "coexistence",
                gettext_lazy(
                    "Coexistence only: the customer goes on using the number in the WhatsApp "
                    "Business app on the phone, and this site uses it, too. Up to 5 messages a "
                    "second."
                ),
            ),
            (
                "dedicated",
                gettext_lazy(
                    "Dedicated only: the number works through this site alone and leaves the app. "
                    "Up to 1000 messages a second."
                ),
            ),
        ],
    )
    language = forms.ChoiceField(label=gettext_lazy("Language of the page"), required=False)
    next_url = forms.CharField(
        label=gettext_lazy("Page to continue to"),
        required=False,
        max_length=MAX_URL_LENGTH,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text=gettext_lazy(
            "The page of this site that the success page links to, such as /welcome/. Leave it "
            "empty for no link."
        ),
    )
    meta_billing_mode = forms.ChoiceField(
        label=gettext_lazy("Who pays Meta"),
        required=False,
        widget=AdminRadioSelect(attrs={"class": "radiolist"}),
        choices=[
            ("", gettext_lazy("Kapso's default.")),
            (
                "customer_managed",
                gettext_lazy("The customer pays Meta directly, with a card of their own."),
            ),
            (
                "partner_managed",
                gettext_lazy("This site pays for the customer, with its credits at Kapso."),
            ),
        ],
        help_text=gettext_lazy(
            "This cannot be changed once the link has been created. Whether Kapso pays Meta is "
            "shown with the number once it is connected."
        ),
    )
    provision_phone_number = forms.BooleanField(
        label=gettext_lazy("Provide a phone number"),
        required=False,
        help_text=gettext_lazy("Kapso provides a new number for a customer who has none to use."),
    )
    phone_number_country_isos = forms.CharField(
        label=gettext_lazy("Countries of the number"),
        required=False,
        max_length=1000,
        widget=forms.TextInput(attrs={"data-kapso-needs": "id_provision_phone_number"}),
        help_text=gettext_lazy("Codes of two letters, such as US, MX. Empty means US."),
    )
    phone_number_area_code = forms.CharField(
        label=gettext_lazy("Area code"),
        required=False,
        max_length=10,
        widget=forms.TextInput(
            attrs={"data-kapso-needs": "id_provision_phone_number", "inputmode": "numeric"}
        ),
        help_text=gettext_lazy("Three digits, in the United States only, such as 415."),
    )
    send_email = forms.BooleanField(
        label=gettext_lazy("E-mail the link to each customer"), required=False
    )
    accept_contrast = forms.BooleanField(
        label=gettext_lazy("Use these colours anyway"), required=False
    )

    def __init__(
        self, data: QueryDict | None, defaults: Mapping[str, Any], *, recipients: int | None = None
    ) -> None:
        self.defaults = defaults
        colors = defaults.get("theme_config")
        self.default_theme: Mapping[str, str] = colors if isinstance(colors, Mapping) else {}
        initial = self.initial_from(defaults)
        if data is not None:
            data = data.copy()
            # Browsers do not send disabled fields, which the form may be shown again with.
            for name in ("phone_number_country_isos", "phone_number_area_code"):
                data.setdefault(name, initial[name])
        super().__init__(data, initial=initial, label_suffix="")
        default = defaults.get("language")
        automatic = (
            _("The customer's own, otherwise %(language)s")
            % {"language": dict(Language.choices).get(default, default)}
            if default
            else _("The customer's own, otherwise the browser's")
        )
        language: Any = self.fields["language"]
        language.choices = [("", automatic), *Language.choices]
        self.recipients = recipients
        if recipients is None:
            del self.fields["send_email"]
        for name, color in COLORS.items():
            shown = self.default_theme.get(name, color.shown)
            self.fields[f"own_{name}"] = forms.BooleanField(label=str(color.label), required=False)
            self.fields[name] = forms.RegexField(
                r"#[0-9A-Fa-f]{6}\Z",
                label=str(color.label),
                required=False,
                initial=shown,
                widget=ColorInput(
                    attrs={
                        "aria-label": _("Colour: %(name)s") % {"name": color.label},
                        "data-kapso-color": f"id_own_{name}",
                        "data-shown": shown,
                    }
                ),
                error_messages={"invalid": _("Must be a colour such as #1a2b3c.")},
            )

    @classmethod
    def initial_from(cls, defaults: Mapping[str, Any]) -> dict[str, Any]:
        types: Sequence[str] = defaults.get("allowed_connection_types") or ()
        countries = defaults.get("phone_number_country_isos") or (DEFAULT_COUNTRY,)
        return {
            "connection_types": types[0] if len(set(types)) == 1 else cls.BOTH,
            "meta_billing_mode": defaults.get("meta_billing_mode") or "",
            "provision_phone_number": bool(defaults.get("provision_phone_number")),
            "phone_number_country_isos": ", ".join(str(code) for code in countries),
            "phone_number_area_code": defaults.get("phone_number_area_code") or "",
        }

    def fieldsets(self) -> list[tuple[str | None, dict[str, Any]]]:
        """Return the fields but the colours, as the admin groups them."""
        number = [
            "provision_phone_number",
            "phone_number_country_isos",
            "phone_number_area_code",
        ]
        fieldsets: list[tuple[str | None, dict[str, Any]]] = [
            (None, {"fields": ["connection_types", "language", "next_url", "meta_billing_mode"]}),
            (_("A new number"), {"fields": number}),
        ]
        if "send_email" in self.fields:
            fieldsets.append((_("Delivery"), {"fields": ["send_email"]}))
        return fieldsets

    def clean_next_url(self) -> str:
        try:
            return validate_same_site_url(self.cleaned_data["next_url"])
        except InvalidOptions as error:
            raise forms.ValidationError(error.errors["next_url"]) from None

    def clean_phone_number_country_isos(self) -> list[str]:
        import phonenumbers  # slow to import

        countries = list(
            dict.fromkeys(
                re.findall(r"[^\s,;]+", self.cleaned_data["phone_number_country_isos"].upper())
            )
        )
        wrong = [code for code in countries if code not in phonenumbers.SUPPORTED_REGIONS]
        if wrong and self.data.get("provision_phone_number"):
            raise forms.ValidationError(
                _("Not a country's code of two letters, such as US: %(codes)s.")
                % {"codes": ", ".join(wrong[:5])}
            )
        return countries

    def clean_send_email(self) -> bool:
        send: bool = self.cleaned_data["send_email"]
        if send and not self.recipients:
            raise forms.ValidationError(_("None of the customers has an e-mail address."))
        return send

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        area_code = data.get("phone_number_area_code", "")
        has_number = data.get("provision_phone_number")
        types = data.get("connection_types", "").split(",")
        if problem := provisioning_problem(
            {"provision_phone_number": has_number, "allowed_connection_types": types}
        ):
            self.add_error("provision_phone_number", problem)
        if not has_number and area_code and area_code != self.initial["phone_number_area_code"]:
            self.add_error(
                "phone_number_area_code", _("Tick “Provide a phone number” to use an area code.")
            )
        if not self.errors:
            try:
                SetupLinkOptions.build(self.defaults, self.options())
            except InvalidOptions as error:
                self._add_option_errors(error)
        if not self.errors and self.unreadable() and not data["accept_contrast"]:
            self.add_error("accept_contrast", _("Some text would be hard to read on Kapso's page:"))
        return data

    def options(self) -> dict[str, Any]:
        """Return the chosen options, under Kapso's names."""
        data = self.cleaned_data
        options: dict[str, Any] = {
            "allowed_connection_types": data["connection_types"].split(","),
            "meta_billing_mode": data["meta_billing_mode"] or None,
            "provision_phone_number": data["provision_phone_number"],
        }
        if data["language"]:
            options["language"] = data["language"]
        if data["provision_phone_number"]:
            options["phone_number_country_isos"] = data["phone_number_country_isos"] or None
            options["phone_number_area_code"] = data["phone_number_area_code"] or None
        if own := self.own_colors():
            options["theme_config"] = {**self.default_theme, **own}
        return options

    def own_colors(self) -> dict[str, str]:
        data = self.cleaned_data
        return {name: data[name] for name in COLORS if data.get(f"own_{name}") and data[name]}

    def unreadable(self) -> list[str]:
        """Return a message for each text that the chosen colours make hard to read."""
        own = self.own_colors()
        return [
            (
                _("“%(text)s” on “%(behind)s” (default): contrast %(contrast).1f, below 4.5.")
                if problem.is_default
                else _("“%(text)s” on “%(behind)s”: contrast %(contrast).1f, below 4.5.")
            )
            % {
                "text": COLORS[problem.text].label,
                "behind": COLORS[problem.behind].label,
                "contrast": problem.contrast,
            }
            for problem in theme.problems({**self.default_theme, **own})
            # The site's own colours are not the user's to change.
            if problem.text in own or problem.behind in own
        ]

    @property
    def has_colors(self) -> bool:
        """True if a colour is chosen or has an error, so that the section is shown open."""
        return any(self[f"own_{name}"].value() or self[name].errors for name in COLORS)

    def color_fields(self) -> Iterator[tuple[forms.BoundField, forms.BoundField]]:
        for name in COLORS:
            yield self[f"own_{name}"], self[name]

    def _add_option_errors(self, error: InvalidOptions) -> None:
        fields = {
            "allowed_connection_types": "connection_types",
            "allowed_origins": "connection_types",  # they need a single type
        }
        for name, problem in error.errors.items():
            field = fields.get(name, name)
            if field in self.fields:
                self.add_error(field, problem)
            else:
                self.add_error(None, f"{name}: {problem}")


MAX_EXTENSION_DAYS = 365
"""Kapso has no limit, but a link that works for years may be found by a stranger."""


class DayField(forms.DateField):
    """A day as ``<input type="date">`` sends it, in every language."""

    widget = forms.DateInput(format="%Y-%m-%d", attrs={"type": "date"})
    input_formats = ["%Y-%m-%d"]


class ExtendForm(forms.Form):
    """The new last day of a link that ends at ``expires_at``: later than now, and within
    ``MAX_EXTENSION_DAYS``."""

    until = DayField(
        label=gettext_lazy("Last day"),
        error_messages={"invalid": gettext_lazy("Enter a date, such as 2031-12-24.")},
    )

    def __init__(self, data: QueryDict | None, *, expires_at: datetime) -> None:
        self.current_end = expires_at
        self.expires_at = to_local_time(expires_at)
        self.last_day = today() + timedelta(days=MAX_EXTENSION_DAYS)
        super().__init__(data, initial={"until": self.day_after(30)}, label_suffix="")
        limits = {"min": self.expires_at.date().isoformat(), "max": self.last_day.isoformat()}
        self.fields["until"].widget.attrs |= limits

    def day_after(self, days: int) -> date:
        """Return the day so many days after the current end, but at most the last day allowed."""
        return min(self.expires_at.date() + timedelta(days=days), self.last_day)

    def clean_until(self) -> Any:
        until = self.cleaned_data["until"]
        if until > self.last_day:
            raise forms.ValidationError(
                _("Choose a day up to %(date)s.") % {"date": date_format(self.last_day)}
            )
        if end_of_day(until) <= self.current_end:
            raise forms.ValidationError(
                _("The setup link works until %(date)s already. Choose a later day.")
                % {"date": date_format(self.expires_at)}
            )
        return until


def start_of_day(day: date) -> datetime:
    """Return the first moment of ``day`` in the current time zone, as this site stores times."""
    return from_local_time(datetime.combine(day, time.min))


def end_of_day(day: date) -> datetime:
    """Return the last second of ``day`` in the current time zone, as this site stores times."""
    return from_local_time(datetime.combine(day, time(23, 59, 59)))
