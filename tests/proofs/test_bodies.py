"""Bodies whose length is not declared, as a real web server hands them on."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..factories import CREATED, new_number_id
from .support import Site, delivery, new_database


def test_chunked_deliveries_under_gunicorn(tmp_path: Path) -> None:
    with new_database("sqlite", tmp_path) as url, Site(url, workers=1, threads=2) as site:
        number = new_number_id()
        small = delivery({"phone_number_id": number, "customer": {"id": "c"}}, event=CREATED)
        large = delivery({"any": "x" * 2**21}, event=CREATED)
        for request, status in ((small, 200), (large, 413), (small, 200)):
            pieces = [request.body[:10], request.body[10:]]
            with contextlib.closing(site.connect()) as connection:
                # A server may answer, and hang up, before it has read a body that is too large.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(
                        "POST", request.target, iter(pieces), request.headers, encode_chunked=True
                    )
                assert connection.getresponse().status == status
        rows = site.rows()
        assert rows.connections == {number: "connected"}
        assert rows.inbox == {"processed": 1}
