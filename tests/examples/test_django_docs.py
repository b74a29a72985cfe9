"""docs/django.md names the settings there are, with the defaults they have."""

from __future__ import annotations

import re

from lifeguard.django import _settings
from tests.examples.server import ROOT

TEXT = (ROOT / "docs" / "django.md").read_text()


def test_each_setting_has_its_row() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", TEXT, re.MULTILINE))
    assert tuple(rows) == _settings.KEYS
    assert f"else {_settings.LANES}" in rows["LANES"]
    assert rows["LANE_TIMEOUT"] == f"{_settings.LANE_TIMEOUT}"
    block = re.search(r"^LIFEGUARD = \{\n(.*?)^\}", TEXT, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert tuple(re.findall(r'"([A-Z_]+)":', block[1])) == _settings.KEYS


def test_the_three_lines_are_the_same_everywhere() -> None:
    for page in ("README.md", "docs/django.md", "lifeguard/django/__init__.py"):
        text = (ROOT / page).read_text()
        assert 'INSTALLED_APPS += ["lifeguard.django"]' in text, page
        assert "application = lifeguard.wrap(" in text, page
