"""docs/incidents.md and this directory tell of the same incidents."""

from __future__ import annotations

import re
from pathlib import Path

from tests.incidents.serving import ROOT

HERE = Path(__file__).parent


def test_every_incident_is_in_the_documentation_with_its_thread() -> None:
    text = (ROOT / "docs" / "incidents.md").read_text()
    rows = re.findall(
        r"^\| ([A-N]\d\d) \| \[([^]]+#\d+)\].*\((\.\./[^)]+)\) \|$", text, re.MULTILINE
    )
    assert rows
    documented = {(f"../tests/incidents/{Path(path).name}", thread) for _, thread, path in rows}

    replayed = set()
    for file in HERE.glob("test_[A-N][0-9][0-9]_*.py"):
        thread = file.read_text().removeprefix('"""').partition(": ")[0]
        replayed.add((f"../tests/incidents/{file.name}", thread))
        assert f"def test_incident_{file.name[5:8]}(" in file.read_text()
    assert documented == replayed
