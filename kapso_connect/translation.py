"""Translations of this package's texts.

Each text has the context "WhatsApp", here and in templates: a site that translates "Connected" or
"Continue" for itself does not replace ours by chance. It can do so on purpose, with ``msgctxt``.
"""

from __future__ import annotations

from functools import partial

from django.utils.translation import npgettext, pgettext, pgettext_lazy

CONTEXT = "WhatsApp"

gettext = partial(pgettext, CONTEXT)
gettext_lazy = partial(pgettext_lazy, CONTEXT)
ngettext = partial(npgettext, CONTEXT)
