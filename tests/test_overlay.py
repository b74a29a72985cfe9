"""Other versions of a package for a subprocess: installed once, pinned, and put first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import overlay as overlays
from tests.support.overlay import REQUIREMENTS, OverlayError, missing_because, overlay

pytestmark = pytest.mark.timeout(300)  # an installation, where the index is slow


def test_two_that_want_the_same_overlay_get_one_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pip runs once, and neither sees a folder that is half full."""
    monkeypatch.setattr(overlays, "MADE", tmp_path)
    installed: list[Path] = []
    install = overlays._install

    def counted(name: str, requirements: Path, folder: Path) -> None:
        install(name, requirements, folder)
        installed.append(folder)

    monkeypatch.setattr(overlays, "_install", counted)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(overlay("django42"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(installed) == 1
    assert found == [installed[0]] * 2
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert left == [installed[0].name]


def test_a_subprocess_imports_the_version_of_the_overlay() -> None:
    env = {**os.environ, "PYTHONPATH": str(overlay("django42"))}
    code = "import asgiref, django, psycopg; print(django.__version__, asgiref.__version__)"
    command = [sys.executable, "-c", code]
    made = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"4\.2\.\d+ 3\.7\.2\n", made.stdout), made


def test_an_overlay_that_cannot_be_installed_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wrong hash here; a machine without a network says it the same way."""
    requirements = tmp_path / "requirements" / "wrong.txt"
    requirements.parent.mkdir()
    requirements.write_text(f"asgiref==3.7.2 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(overlays, "ROOT", tmp_path)
    monkeypatch.setattr(overlays, "REQUIREMENTS", requirements.parent)
    monkeypatch.setattr(overlays, "MADE", tmp_path / "made")
    with pytest.raises(
        OverlayError, match=r"could not install requirements/wrong.txt(?s:.)*asgiref"
    ):
        overlay("wrong")
    assert [path for path in (tmp_path / "made").iterdir() if path.is_dir()] == []


def test_an_unknown_overlay_is_refused_with_the_names_of_those_that_exist() -> None:
    with pytest.raises(OverlayError, match=r"'django24'; there are: .*django42, "):
        overlay("django24")


def test_an_overlay_that_this_python_cannot_have_is_refused_with_the_reason() -> None:
    name = "django60" if sys.version_info < (3, 12) else "granian132"
    reason = missing_because(name)
    assert reason is not None
    with pytest.raises(OverlayError, match=re.escape(reason)):
        overlay(name)


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_overlays_are_pinned_with_hashes_and_nothing_else(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert re.fullmatch(
            r"[a-z0-9._-]+==[^\s;]+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line
        ), line
    assert path.with_suffix(".in").is_file()
