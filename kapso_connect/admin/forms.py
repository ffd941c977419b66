"""The choices for a new setup link, checked before Kapso is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib.admin.widgets import AdminRadioSelect
from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import Language
from ..options import DEFAULT_COUNTRY, InvalidOptions, SetupLinkOptions


class SetupLinkForm(forms.Form):
    """The options that matter to staff; the others are the site's ``SETUP_LINK_DEFAULTS``."""

    BOTH = "coexistence,dedicated"

    connection_types = forms.ChoiceField(
        label=gettext_lazy("Ways to connect"),
        widget=AdminRadioSelect(attrs={"class": "radiolist"}),
        choices=[
            (BOTH, gettext_lazy("Both: the customer chooses.")),
            (
                "coexistence",
                gettext_lazy(
                    "Coexistence only: the customer keeps the WhatsApp Business app on the phone; "
                    "up to 5 messages a second."
                ),
            ),
            (
                "dedicated",
                gettext_lazy(
                    "Dedicated only: the number works through the API alone, no longer in the "
                    "app; up to 1000 messages a second."
                ),
            ),
        ],
    )
    language = forms.Field()  # with its choices in __init__
    provision_phone_number = forms.BooleanField(
        label=gettext_lazy("Provide a phone number"),
        required=False,
        help_text=gettext_lazy("Kapso provides a new number for a customer who has none to use."),
    )
    phone_number_country_isos = forms.CharField(
        label=gettext_lazy("Countries of the number"),
        required=False,
        max_length=100,
        help_text=gettext_lazy("Codes of two letters, such as US, MX. Empty means US."),
    )
    phone_number_area_code = forms.CharField(
        label=gettext_lazy("Area code"),
        required=False,
        max_length=10,
        help_text=gettext_lazy("Three digits, in the United States only, such as 415."),
    )

    def __init__(self, data: QueryDict | None, defaults: Mapping[str, Any]) -> None:
        self.defaults = defaults
        super().__init__(data, initial=self.initial_from(defaults), label_suffix="")
        given = defaults.get("language")
        automatic = (
            _("The customer's own, otherwise %(language)s")
            % {"language": dict(Language.choices).get(given, given)}
            if given
            else _("The customer's own, otherwise the browser's")
        )
        self.fields["language"] = forms.ChoiceField(
            label=_("Language of the page"),
            required=False,
            choices=[("", automatic), *Language.choices],
        )

    @classmethod
    def initial_from(cls, defaults: Mapping[str, Any]) -> dict[str, Any]:
        types: Sequence[str] = defaults.get("allowed_connection_types") or ()
        countries = defaults.get("phone_number_country_isos") or (DEFAULT_COUNTRY,)
        return {
            "connection_types": types[0] if len(set(types)) == 1 else cls.BOTH,
            "provision_phone_number": bool(defaults.get("provision_phone_number")),
            "phone_number_country_isos": ", ".join(str(code) for code in countries),
            "phone_number_area_code": defaults.get("phone_number_area_code") or "",
        }

    def clean(self) -> dict[str, Any]:
        given = self.cleaned_data
        area_code = given.get("phone_number_area_code", "")
        if (
            area_code
            and not given.get("provision_phone_number")
            and area_code != self.initial["phone_number_area_code"]
        ):
            self.add_error(
                "phone_number_area_code", _("Tick “Provide a phone number” to use an area code.")
            )
        if not self.errors:
            try:
                SetupLinkOptions.build(self.defaults, self.options())
            except InvalidOptions as error:
                self._say(error)
        return given

    def options(self) -> dict[str, Any]:
        """Return what was chosen, under Kapso's names."""
        given = self.cleaned_data
        options: dict[str, Any] = {
            "allowed_connection_types": given["connection_types"].split(","),
            "provision_phone_number": given["provision_phone_number"],
        }
        if given["language"]:
            options["language"] = given["language"]
        if given["provision_phone_number"]:
            countries = given["phone_number_country_isos"].upper().replace(",", " ").split()
            options["phone_number_country_isos"] = countries or None
            options["phone_number_area_code"] = given["phone_number_area_code"] or None
        return options

    def _say(self, error: InvalidOptions) -> None:
        fields = {"allowed_connection_types": "connection_types"}
        for name, problem in error.errors.items():
            field = fields.get(name, name)
            if field in self.fields:
                self.add_error(field, problem)
            else:
                self.add_error(None, f"{name}: {problem}")
