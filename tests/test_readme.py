"""What README.md and docs/ say is what happens: the blocks of Python in them run.

A comment before a block says how: ``<!-- run -->`` (a script that ends well) or
``<!-- serve: X -->`` (an app, served by X, that answers at ``/``). A block without one is a line or
two to look at, and must compile.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import lifeguard
from lifeguard.testing import Postgres
from tests.examples.server import ROOT, running
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(300)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("README.md"))

FENCE = re.compile(
    r"(?:^<!--\s*(?P<how>[^\n]*?)\s*-->\n)?^```(?P<language>[\w-]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    how: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start("code")),
            match["language"],
            match["how"],
            match["code"],
        )
        for match in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUN = [block for block in PYTHON if block.how == "run"]
SERVE = [block for block in PYTHON if (block.how or "").startswith("serve: ")]
SERVERS = {
    "uvicorn": ("uvicorn", "block:app", "--port={port}"),
    "gunicorn": ("gunicorn", "block:app", "--bind=127.0.0.1:{port}", "-k=gthread", "--threads=4"),
    "gunicorn --preload": ("gunicorn", "block:app", "--bind=127.0.0.1:{port}", "-w=2", "--preload"),
}


def test_every_python_block_is_run_or_compiles() -> None:
    assert len(RUN) >= 2
    assert len(SERVE) >= 3
    for block in PYTHON:
        if block in RUN or block in SERVE:
            continue
        assert block.how is None, f"{block}: unknown mark {block.how!r}"
        compile(textwrap.dedent(block.code), str(block), "exec", flags=0x2000)  # top-level await


@pytest.mark.parametrize("block", RUN, ids=str)
def test_script(block: Block, pg: Postgres, appname: str, dsn: str, tmp_path: Path) -> None:
    """It ends well, prints what its comments say, and leaves no connection."""
    script = tmp_path / "block.py"
    script.write_text(block.code)
    ended = subprocess.run(
        [sys.executable, str(script)],
        env={"DATABASE_URL": dsn, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for expected in re.findall(r"# -> (.*)", block.code):
        assert expected in ended.stdout.splitlines(), ended.stdout + ended.stderr
    assert pg.wait_count(0, prefix=appname) == 0


@pytest.mark.parametrize("block", SERVE, ids=str)
def test_app(block: Block, pg: Postgres, appname: str, dsn: str, tmp_path: Path) -> None:
    """It answers, and after a SIGTERM its connections are gone."""
    (tmp_path / "block.py").write_text(block.code)
    assert block.how is not None
    port = free_port()
    command = SERVERS[block.how.removeprefix("serve: ")]
    words = [word.format(port=port) for word in command]
    log = tmp_path / "output"
    with running("-m", *words, port=port, log=log, cwd=tmp_path, DATABASE_URL=dsn) as server:
        for _ in range(10):
            answer = server.http.get("/")
            assert answer.status_code == 200, server.output
            assert answer.content  # all of it comes out of the database
    assert "not given back" not in server.output
    assert pg.wait_count(0, prefix=appname) == 0


def test_the_two_commands_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    consoles = "\n".join(block.code for block in blocks_of(ROOT / "README.md"))
    for command, recipe in (("demo", "lifeguard demo"), ("test", "python -m pytest")):
        assert re.search(rf"^make {command}\b", consoles, re.MULTILINE)
        assert re.search(rf"^{command}:[^\n]*\n\t\$\(bin\)/{recipe}\b", makefile, re.MULTILINE)
        assert re.search(rf"^\.venv/bin/{recipe}$", consoles, re.MULTILINE)
    plain = re.findall(r"^\.venv/bin/(python -m pip install .*)$", consoles, re.MULTILINE)
    made = re.findall(r"^\t\$\(bin\)/(python -m pip install .*)$", makefile, re.MULTILINE)
    assert plain == [line.replace(" --quiet", "") for line in made]
    assert len(plain) == 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"pip install {project['name']} " in consoles


def test_the_options_and_their_defaults_are_those_of_the_code() -> None:
    parameters = inspect.signature(lifeguard.Lifeguard).parameters
    rows = re.findall(
        r"^\| `(\w+)` \| *`?([\w.]*)`? *\|", (ROOT / "docs/concepts.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in rows] == list(parameters)
    for name, default in rows:
        assert default == f"{parameters[name].default}".removesuffix(".0").strip("()"), name


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{text}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings]
            assert anchor in slugs, f"{text}: {target}"
