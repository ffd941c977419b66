"""A Django signal whose receivers have names, so that it can be sent to some of them."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.dispatch import Signal


class ConnectSignal(Signal):
    """A Signal with a docstring of its own, whose receivers can be called by their names."""

    def __init__(self, doc: str) -> None:
        super().__init__()
        self.__doc__ = inspect.cleandoc(doc)

    def named_receivers(self, sender: Any) -> dict[str, Callable[..., Any]]:
        """Return the receivers that are called for ``sender``, asynchronous ones last, by names
        that are the same in every process. ``call`` calls each.

        The name is the ``dispatch_uid``, if that is a string, or ``receiver_name``. Where several
        receivers share a name, the second in the order of their connection gets "#2" after it, and
        so on.
        """
        found: dict[str, Callable[..., Any]] = {}
        # Django has no public way to call some of the receivers, or to read a dispatch_uid; the
        # tests check the form of these entries on each supported version.
        for (uid, sender_id), reference, *_ in list(self.receivers):
            if sender_id not in {id(None), id(sender)}:
                continue
            is_weak = isinstance(reference, weakref.ReferenceType)
            receiver = reference() if is_weak else reference
            if receiver is None:
                continue  # it was deleted
            name = shared = uid if isinstance(uid, str) else receiver_name(receiver)
            number = 1
            while name in found:
                number += 1
                name = f"{shared}#{number}"
            found[name] = receiver
        return dict(sorted(found.items(), key=lambda item: iscoroutinefunction(item[1])))


def call(receiver: Callable[..., Any], **arguments: Any) -> None:
    """Call a receiver to its end, also one that returns a coroutine: an asynchronous function, an
    object whose ``__call__`` is one, or what wraps one."""
    result = receiver(**arguments)
    if inspect.iscoroutine(result):
        async_to_sync(_wait_for)(result)


async def _wait_for(coroutine: Coroutine[Any, Any, Any]) -> None:
    await coroutine


def receiver_name(receiver: Callable[..., Any]) -> str:
    """Return the name of a receiver that was connected without a ``dispatch_uid``.

    That is its module and its qualified name; for a method the class of the object that it is
    called on, and the method's name; for a ``functools.partial`` the name of its function; for any
    other object the name of its type.
    """
    if isinstance(receiver, functools.partial):
        return receiver_name(receiver.func)
    if inspect.ismethod(receiver):
        instance = receiver.__self__
        owner = instance if inspect.isclass(instance) else type(instance)
        name = getattr(receiver, "__name__", None) or type(receiver.__func__).__name__
        return f"{owner.__module__}.{owner.__qualname__}.{name}"
    named = receiver if hasattr(receiver, "__qualname__") else type(receiver)
    return f"{named.__module__}.{named.__qualname__}"
