"""The public signals. Connect to them as to any Django signal: ``@receiver(whatsapp_connected)``.

Each signal is sent after the commit of the transaction that recorded its event, a row of the
timeline (``event``, a TimelineEvent). Every signal carries ``event`` and ``source`` ("webhook",
"redirect", "sync" or "manual"). Only ``webhook_received`` for messages has no event: see there.

``event.pk`` is the receiver's idempotency key. Each receiver gets a signal once. It gets it again
only if it raised, if it took longer than ``LEASE_SECONDS``, or if the process died after calling it
and before that was recorded.

A receiver that raises never affects the answer to Kapso: the error is logged and stored on the
event, and that receiver is called again, by ``kapso_sync`` or by a task queue that can defer tasks.
Such a call may come late, so check
``connection.status`` where it matters. It is the status that was just committed or, in a retry or
in a task queue's worker, the one in the database right before the signal is sent.
"""

from __future__ import annotations

from .dispatch import ConnectSignal

setup_link_created = ConnectSignal(
    """A setup link was created for a customer. ``sender=SetupLink``.

    Arguments: ``setup_link``, ``customer``, ``source``, ``event``.
    """
)

whatsapp_connected = ConnectSignal(
    """A customer connected a number. ``sender=Connection``.

    Sent once for each connection, whichever of webhook, redirect and sync reports it first.

    The webhook says only ``phone_number_id``, so Kapso's API is asked for the rest before, for at
    most 2 seconds. Where it does not answer in time, ``display_phone_number``, ``verified_name``,
    ``connection_type``, ``business_account_id``, ``quality_rating`` and ``name_status`` of the
    connection may be empty. ``kapso_sync`` adds them (the timeline shows "Details received"); no
    signal is sent for that. ``provisioned_phone_number_id`` is only known from the browser.

    Arguments: ``connection``, ``customer``, ``setup_link`` (None if the number was not connected
    through a setup link of this site), ``source``, ``event``.
    """
)

whatsapp_disconnected = ConnectSignal(
    """A number is no longer connected for its customer. ``sender=Connection``.

    ``connection.is_paused`` is True if it was Meta that took the number off, as it often does when
    the customer changes the phone. Usually ``whatsapp_reconnected`` follows within minutes, so do
    not write to the customer at once. If the customer withdraws a paused number, or it is deleted,
    this signal is sent again with that reason.

    Arguments: ``connection``, ``customer`` (who lost the number), ``setup_link`` (or None),
    ``source``, ``event``. ``event.data["reason"]`` is the reason: "offboarded" for such a pause,
    "staff" if staff disconnected the number; ``event.actor`` is who then, whatever reported it
    first.
    """
)

whatsapp_reconnected = ConnectSignal(
    """A disconnected number works again for the same customer. ``sender=Connection``.

    Arguments: ``connection``, ``customer``, ``setup_link`` (or None), ``source``, ``event``.
    """
)

whatsapp_setup_failed = ConnectSignal(
    """A customer came back from Kapso's page without a connection. ``sender=SetupLink``.

    Arguments: ``setup_link``, ``customer``, ``error_code`` (Kapso's, such as
    "facebook_auth_failed"), ``source``, ``event``.
    """
)

whatsapp_account_updated = ConnectSignal(
    """Meta restricted, disabled or reinstated a number's account, or found a violation.

    ``sender=Connection``. Sent once for each known number of the WhatsApp Business Account.

    Arguments: ``connection``, ``customer``, ``setup_link`` (or None), ``source``, ``event``
    (``event.data`` holds ``event``, Meta's decision, and the details that Kapso sent with it:
    restrictions, violation, ban).
    """
)

webhook_received = ConnectSignal(
    """A signed delivery arrived at this package's webhook, whether or not it handles its event.

    ``sender=WebhookEvent``.

    Arguments: ``webhook_event``, ``event_name`` (Kapso's), ``payload`` (dict), ``source``,
    ``event``.

    Events about messages (``whatsapp.message.*``, ``whatsapp.conversation.*``,
    ``whatsapp.contact.*``, ``whatsapp.meta_business_agent.*`` and Meta's own bodies) belong to the
    URL of ``NUMBER_WEBHOOK``. If they arrive here all the same, they are not stored:
    ``webhook_event`` and ``event`` are None, and the receivers are called before Kapso is answered.
    If one raises, the answer is 503, and Kapso sends the delivery again, to all receivers. So the
    same message can come twice: remember its id.
    """
)
