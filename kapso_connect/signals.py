"""The public signals. Hook them as any Django signal: ``@receiver(whatsapp_connected)``.

Each is sent after the transaction that recorded it committed, from its row in the timeline
(``event``, a TimelineEvent). ``event.pk`` is the receiver's idempotency key: a signal is sent
once, and again only to a receiver that raised, or when the process died between calling the
receivers and recording that. A receiver that raises is logged, noted on the event, and tried again
by ``kapso_sync``; it never costs Kapso its answer. Retries may come late: where it matters, look at
``connection.status``, which is what was just committed or, in a retry and from a queue, what the
database says just before the signal is sent.

All carry ``event`` and ``source`` ("webhook", "redirect", "sync" or "manual").
"""

from __future__ import annotations

from .dispatch import ConnectSignal

setup_link_created = ConnectSignal()
"""A setup link was made for a customer. ``sender=SetupLink``.

Arguments: ``setup_link``, ``customer``, ``source``, ``event``.
"""

whatsapp_connected = ConnectSignal()
"""A customer connected a number. ``sender=Connection``. Sent once for each connection, whichever
of webhook, redirect and sync came first.

Arguments: ``connection``, ``customer``, ``setup_link`` (None where no link of ours led to it),
``source``, ``event``.
"""

whatsapp_disconnected = ConnectSignal()
"""A number is no longer connected for its customer. ``sender=Connection``.

Arguments: ``connection``, ``customer`` (the one who lost it), ``setup_link`` (or None),
``source``, ``event`` (``event.data["reason"]`` says why, where Kapso did).
"""

whatsapp_reconnected = ConnectSignal()
"""A disconnected number works again for the same customer. ``sender=Connection``.

Arguments: ``connection``, ``customer``, ``setup_link`` (or None), ``source``, ``event``.
"""

whatsapp_setup_failed = ConnectSignal()
"""A customer came back from Kapso's page without a connection. ``sender=SetupLink``.

Arguments: ``setup_link``, ``customer``, ``error_code`` (Kapso's, such as
"facebook_auth_failed"), ``source``, ``event``.
"""

whatsapp_account_updated = ConnectSignal()
"""Meta restricted, disabled or reinstated the account a number belongs to, or found a violation.
``sender=Connection``; one signal for each known number of the account.

Arguments: ``connection``, ``customer``, ``setup_link`` (or None), ``source``, ``event``
(``event.data`` holds ``event`` and what Kapso told: restrictions, violation, ban).
"""

webhook_received = ConnectSignal()
"""A signed delivery was stored, known to this package or not. ``sender=WebhookEvent``.

Arguments: ``webhook_event``, ``event_name`` (Kapso's), ``payload`` (dict), ``source``,
``event``.
"""
