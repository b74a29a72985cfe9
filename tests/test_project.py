"""The project around the code: what is built, what is pinned, what is promised in writing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import lifeguard

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements" / "dev.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel that would be uploaded, built from this tree."""
    target = tmp_path_factory.mktemp("dist")
    build = (
        "import sys, hatchling.build as build;"
        "print(build.build_wheel(sys.argv[1]), file=sys.stderr)"
    )
    subprocess.run(
        [sys.executable, "-c", build, str(target)], cwd=ROOT, check=True, capture_output=True
    )
    [path] = target.iterdir()
    return zipfile.Path(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.Path) -> Message:
    [info] = [entry for entry in wheel.iterdir() if entry.name.endswith(".dist-info")]
    return message_from_bytes((info / "METADATA").read_bytes())


def test_wheel_is_the_package_and_nothing_else(wheel: zipfile.Path) -> None:
    names = sorted(entry.name for entry in wheel.iterdir())
    assert names == ["lifeguard", f"lifeguard_pool-{lifeguard.__version__}.dist-info"]


def test_wheel_holds_every_module_and_the_typing_marker(wheel: zipfile.Path) -> None:
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lifeguard").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    packed = {name for name in wheel.root.namelist() if re.match(r"lifeguard/.*[^/]$", name)}
    assert "lifeguard/py.typed" in packed
    assert packed == ours


def test_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "lifeguard-pool"
    assert metadata["Version"] == lifeguard.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_required_dependencies_are_the_four(metadata: Message) -> None:
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {re.split(r"[^A-Za-z0-9-]", line)[0] for line in required}
    assert names == {"anyio", "asgiref", "psycopg-pool", "starlette"}


def test_extras(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra", []))
    promised = "demo django fastapi sqlalchemy asyncpg otel prometheus"
    queues = "arq celery dramatiq huey procrastinate rq taskiq"
    assert extras == {*promised.split(), *queues.split()}


def test_command_line_is_declared(wheel: zipfile.Path) -> None:
    [info] = [entry for entry in wheel.iterdir() if entry.name.endswith(".dist-info")]
    assert "lifeguard = lifeguard.cli:main" in (info / "entry_points.txt").read_text()


def test_license_is_in_the_wheel(wheel: zipfile.Path) -> None:
    [info] = [entry for entry in wheel.iterdir() if entry.name.endswith(".dist-info")]
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_lock_holds_names_versions_and_hashes_only() -> None:
    for line in LOCK.splitlines():
        assert re.fullmatch(
            r"[a-z0-9._-]+(\[[a-z0-9,-]+\])?==[^\s;]+( ; [^\\]+)? \\"
            r"|    --hash=sha256:[0-9a-f]{64}( \\)?",
            line,
        ), line


def test_lock_has_no_addresses() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*-(?!-hash=)", LOCK, re.MULTILINE)


def test_everything_in_the_lock_has_a_hash() -> None:
    blocks = re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) > 50
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_lock_pins_what_the_project_asks_for() -> None:
    """Dependencies, development groups and the build back end, or an offline set-up would fail."""

    def name(requirement: str) -> str:
        return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")

    asked = {name(line) for line in PROJECT["project"]["dependencies"]}
    asked |= {name(line) for line in PROJECT["build-system"]["requires"]}
    for group in PROJECT["dependency-groups"].values():
        asked |= {name(line) for line in group if isinstance(line, str)}
    pinned = set(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==", LOCK, re.MULTILINE))
    assert asked - pinned == set()


@pytest.mark.parametrize(
    "words",
    [
        "make demo",
        "make test",
        "pip install --require-hashes -r requirements/dev.txt",
        "lifeguard-pool",
        "LIFEGUARD_DSN",
    ],
)
def test_readme_says_how_to_start(words: str) -> None:
    assert words in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "target",
    ["demo", "test", "lint", "types", "servers", "celery", "services", "matrix", "bench", "all"],
)
def test_makefile_has_the_target(target: str) -> None:
    made = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


def test_ci_script_is_executable_and_parses() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
