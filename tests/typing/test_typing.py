"""The types people see, judged by both type checkers in their strict mode."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

Lines = dict[int, str]


def mypy(path: Path) -> Lines:
    """Lines of *path* that mypy --strict complains about, and what it says."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--hide-error-context", "--no-pretty", str(path.relative_to(ROOT))),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    found: Lines = {}
    for file, line, text in re.findall(r"(?m)^(.+?):(\d+): error: (.*)$", result.stdout):
        assert (ROOT / file) == path, f"{file}:{line}: {text}"
        found[int(line)] = text
    return found


def pyright(path: Path, tmp_path: Path) -> Lines:
    """The same for pyright, in strict mode but for what says nothing about our types."""
    config = {
        "include": [path.name],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "extraPaths": [str(ROOT)],
        # matters of style and of other people's stubs
        **dict.fromkeys(
            ["reportUnusedFunction", "reportUnusedExpression", "reportUnknownMemberType"], False
        ),
    }
    shutil.copy(path, tmp_path)  # pyright includes nothing from outside of its project
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pyright", "--outputjson"),
            *("--pythonpath", sys.executable, "--project", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    answer = json.loads(result.stdout)
    assert answer["summary"]["filesAnalyzed"] == 1
    return {
        each["range"]["start"]["line"] + 1: each["message"]
        for each in answer["generalDiagnostics"]
        if each["severity"] == "error"
    }


@pytest.fixture(params=["mypy", "pyright"])
def errors_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], Lines]:
    """A type checker."""
    if request.param == "mypy":
        return mypy
    return lambda path: pyright(path, tmp_path)


@pytest.mark.timeout(170)  # the first run reads the types of five frameworks
def test_what_people_write_is_accepted(errors_of: Callable[[Path], Lines]) -> None:
    """No error, and every assert_type() holds."""
    assert errors_of(HERE / "accepted.py") == {}


@pytest.mark.timeout(170)
def test_what_is_wrong_is_refused(errors_of: Callable[[Path], Lines]) -> None:
    """Each marked line is an error, or the line below where a decorator is at fault; no other."""
    path = HERE / "refused.py"
    marked = {
        number
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# wrong")
    }
    found = errors_of(path)
    assert marked
    missing = {number for number in marked if not found.keys() & {number, number + 1}}
    assert missing == set(), "these lines are wrong and nobody says so"
    allowed = marked | {number + 1 for number in marked}
    assert {number: text for number, text in found.items() if number not in allowed} == {}
