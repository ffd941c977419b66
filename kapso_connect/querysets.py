"""The base of all QuerySets of this package."""

from __future__ import annotations

from typing import TypeVar

from django.db import models, router

ModelT = TypeVar("ModelT", bound=models.Model)


class PrimaryQuerySet(models.QuerySet[ModelT]):
    """Reads from the database that is written to, unless ``using()`` names another one.

    A replica may lag behind. What is read here decides what is written, so a site's router must
    not send it there. A query of the site's own that contains one of these is made where the
    site's router says.
    """

    @property
    def db(self) -> str:
        """The alias of the database that the query would use now."""
        # Django's documentation uses ``_db``, which ``using()`` sets, in managers.
        chosen: str | None = self._db  # type: ignore[attr-defined]
        return chosen or router.db_for_write(self.model)
