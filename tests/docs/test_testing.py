"""The page "Test your own code": its tests pass with the receiver of the tutorial as it stands."""

from __future__ import annotations

from .support import DOCS, NewSite, blocks_of


def test_its_tests_pass_after_the_tutorial(site: NewSite) -> None:
    testing = site.branch("testing")
    outputs = []
    for block in blocks_of(DOCS / "how-to" / "testing.md"):
        testing.execute_block(block)
        if block.language == "console":
            outputs.append((block.text.strip(), testing.output))
    (own, own_output), (with_pytest, _output) = outputs
    assert own == "python manage.py test"
    assert "Ran 1 test" in own_output
    assert "5 passed" in testing.command(with_pytest)  # now with all of the page
