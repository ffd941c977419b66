"""The REST API, for a site whose own front end does the onboarding.

Mount it with ``path("api/whatsapp/", include("kapso_connect.api.urls"))``. ``tenants`` opens it to
a site's own users, each to their own customers. Nothing else of this package imports it.
"""

from __future__ import annotations
