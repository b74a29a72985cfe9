"""The tables of docs/servers/index.md are those of the matrix: what is recorded is what is told."""

from __future__ import annotations

import json
import re

import pytest

from tests.matrix.events import EVENTS
from tests.matrix.judge import EXPECTED
from tests.servers.rows import ENDS, ROOT

PAGE = (ROOT / "docs" / "servers" / "index.md").read_text()
DATA = json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("version", sorted(DATA.keys() - {"why"}))
def test_each_cell_tells_what_was_recorded(version: str) -> None:
    """Whoever records anew prints the table anew: ``python -m tests.matrix --markdown``."""
    found = re.search(rf"<!-- [^\n]*, with {version} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert found is not None
    lines = [line for line in found[1].splitlines() if line.startswith("| ")]
    cells = {
        words[0].strip(): [word.strip(" *") for word in words[1:-1]]
        for words in (line[1:].split("|") for line in lines[1:])
    }
    assert list(cells) == [row.name for row in ENDS]
    for row in ENDS:
        for event, told in zip(EVENTS, cells[row.name], strict=True):
            known = DATA[version][row.name].get(event.key, {"outcome": ""})
            words = [known["outcome"], known.get("request", "")]
            said = [word for word in told.split() if "." not in word]  # without the seconds
            assert said == " ".join(words).split(), (row.name, event.key)


@pytest.mark.parametrize("package", sorted({row.package for row in ENDS}))
def test_each_server_has_a_page(package: str) -> None:
    name = package.removeprefix("py")
    page = (ROOT / "docs" / "servers" / f"{name}.md").read_text()
    for heading in ("## What to set", "## What is guaranteed", "## What is not"):
        assert heading in page
    assert f"({name}.md)" in PAGE
