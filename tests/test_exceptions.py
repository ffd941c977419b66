from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from kapso_connect import exceptions

EXAMPLES = {
    exceptions.DeliveryRefused: lambda: exceptions.DeliveryRefused(401, "No signature."),
    exceptions.InvalidOptions: lambda: exceptions.InvalidOptions({"language": "wrong", "x": "y"}),
    exceptions.KapsoRateLimited: lambda: exceptions.KapsoRateLimited(
        "Wait.", operation="create setup link", status=429, retry_after=7.5
    ),
}


def make(kind: type[Exception]) -> Exception:
    if kind in EXAMPLES:
        return EXAMPLES[kind]()
    if issubclass(kind, exceptions.KapsoError):
        return kind("Went wrong.", operation="get number", status=500, outcome_unknown=True)
    return kind("Went wrong.")


EVERY = [
    kind
    for _name, kind in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(kind, Exception)
]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    "transported", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_exceptions_survive_pickle_and_copy(kind: type[Exception], transported) -> None:
    """Task queues and process pools send them from one process to another."""
    error = make(kind)
    again = transported(error)
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert str(again)
