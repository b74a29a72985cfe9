"""docs/incidents.md tells of each seed, and links its report."""

from __future__ import annotations

import re
from pathlib import Path

from tests.incidents.seeds.deploying import ROOT

HERE = Path(__file__).parent


def test_every_seed_is_in_the_documentation_with_its_report() -> None:
    text = (ROOT / "docs" / "incidents.md").read_text()
    rows = re.findall(
        r"^\| \w.*? \(\[([^]]+#\d+)\].*\.\./tests/incidents/seeds/(test_\w+\.py)\) \|$",
        text,
        re.MULTILINE,
    )
    replayed = {
        (file.read_text().removeprefix('"""').partition(": ")[0], file.name)
        for file in HERE.glob("test_*.py")
        if file != Path(__file__)
    }
    assert replayed == set(rows)
    assert replayed
