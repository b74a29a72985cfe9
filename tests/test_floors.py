"""The house: imports go down only, and the core names nobody.

The table below is the design. It is compared with what the modules import, at the top or inside
functions; imports for type checkers do not count.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lifeguard"

# A module may import from the floors below its own, and from the siblings named beside it.
FLOORS: list[dict[str, str]] = [
    # facts
    {
        "_core.errors": "",
        "_core.clock": "",
        "_core.fork": "",
        "_core.shield": "",
        "_core.ends": "_core.fork",
    },
    # the idea
    {"_core.lifetime": "", "_core.observer": "", "_core.alarm": "_core.observer"},
    # its two uses, and the threads that units share
    {
        "_core.lanes": "_core.unit",
        "_core.resource": "",
        "_core.unit": "",
        "_core.parent": "",
        "_core.worker": "_core.resource _core.unit _core.parent",
    },
    # definitions, and this process's worker
    {"_core.guard": ""},
    # what PostgreSQL is told, whatever the driver
    {"_net": ""},
    # hosts by protocol; _wrap is the front door to all of them
    {
        "asgi": "",
        "wsgi": "",
        "threads": "",
        "_lifespan": "asgi",
        "_loop": "",
        "_wrap": "asgi wsgi threads _lifespan",
    },
    # the public names
    {"": ""},
    # hosts by library, pools, observers
    {
        "arq": "",
        "celery": "",
        "django": "_psycopg_fork celery",
        "dramatiq": "",
        "huey": "",
        "procrastinate": "",
        "rq": "",
        "taskiq": "",
        "gunicorn": "",
        "psycopg": "_psycopg_net _psycopg_fork",
        "_psycopg_fork": "",
        "_psycopg_net": "",
        "sqlalchemy": "_psycopg_fork",
        "asyncpg": "",
        "leaks": "",
        "metrics": "",
        "budget": "",
    },
    # what people run and test with
    {"cli": "testing", "testing": "", "pytest_plugin": "testing"},
]
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
SIBLINGS = {name: text.split() for floor in FLOORS for name, text in floor.items()}

MODULES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def house_of(module: str) -> str:
    """The entry of the table that *module* falls under: folders are one."""
    if module in FLOOR:
        return module
    head = module.partition(".")[0]
    return head if head in FLOOR and head != "_core" else module


def imports(path: Path) -> Iterator[str]:
    """The modules of this package that *path* imports, wherever it does."""
    module = module_of(path)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.orelse:
                yield from visit(each)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                if head == "lifeguard":
                    yield rest
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                base += node.module.split(".") if node.module else []
                yield from targets(base, node)
            elif node.module and node.module.partition(".")[0] == "lifeguard":
                yield from targets(node.module.split(".")[1:], node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    def targets(base: list[str], node: ast.ImportFrom) -> Iterator[str]:
        for alias in node.names:
            inside = [*base, alias.name]
            path = PACKAGE.joinpath(*inside)
            if alias.name == "_default" and not base:
                continue  # the one guard that everybody shares, asked for when it is needed
            is_module = path.with_suffix(".py").exists() or path.is_dir()
            yield ".".join(inside if is_module else base)

    yield from visit(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_a_module_imports_from_the_floors_below_it_only(path: Path) -> None:
    """Anything else needs a new line in the table, and a reason."""
    module = house_of(module_of(path))
    if module == "_core":
        assert list(imports(path)) == []
        return
    assert module in FLOOR, f"lifeguard.{module} has no floor: add it to the table"
    wrong = []
    for target in sorted(set(imports(path))):
        there = house_of(target)
        if there == module and module not in FLOOR:
            continue
        if there == module or there in SIBLINGS[module]:
            continue
        if there not in FLOOR or FLOOR[there] >= FLOOR[module]:
            wrong.append(target)
    assert wrong == []


def test_the_table_is_read_from_real_imports() -> None:
    """A table that nothing is compared with would always hold."""
    assert set(imports(PACKAGE / "_core" / "lifetime.py")) >= {"_core.fork", "_core.errors"}
    assert "asgi" in set(imports(PACKAGE / "_wrap.py"))  # inside a method
    assert "_core.observer" in set(imports(PACKAGE / "__init__.py"))
    assert not any(target.startswith("psycopg") for target in imports(PACKAGE / "__init__.py"))


def test_the_front_page_imports_no_adapter() -> None:
    """What people did not ask for is not loaded: __init__ knows the core and the front door."""
    targets = set(imports(PACKAGE / "__init__.py"))
    assert {target for target in targets if not target.startswith("_core")} == {"_wrap"}


CORE = sorted((PACKAGE / "_core").glob("*.py"))

#: Frameworks and drivers: nobody in the core knows one.
NAMES = (
    "aiohttp|arq|asyncpg|celery|daphne|django|dramatiq|falcon|fastapi|flask|granian"
    "|gunicorn|huey|hypercorn|litestar|procrastinate|psycopg|psycopg2|psycopg_pool|pyramid|quart|rq"
    "|sanic|sqlalchemy|starlette|taskiq|uvicorn|uwsgi|waitress|werkzeug"
)
#: Protocols: a sentence for a person may say where to go on ("or an ASGI app"), code may not.
PROTOCOLS = "asgi|wsgi|http|lifespan|scope|websocket|environ|start_response|postgresql|postgres"


def words(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, text, and whether it is a sentence, of every name and string that is code."""
    source = path.read_text()
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    strings = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string, False
        elif token.type in strings and token.start[0] not in docstrings:
            yield token.start[0], token.string, " " in token.string.strip()


@pytest.mark.parametrize("path", CORE, ids=module_of)
def test_the_core_names_no_framework_driver_or_protocol(path: Path) -> None:
    """Docstrings and comments may cite what a rule was paid for with; code may not know it."""
    found = []
    for line, text, sentence in words(path):
        parts = re.split(r"[^a-z0-9]+", text.lower())
        whole = {text.lower().strip("\"'"), *parts}
        if whole & set(NAMES.split("|")):
            found.append((line, text))
        if not sentence and whole & set(PROTOCOLS.split("|")) and not is_exempt(path, text):
            found.append((line, text))
    assert found == []


def is_exempt(path: Path, text: str) -> bool:
    """Words of two meanings: anyio's cancel scopes; the URIs a secret has to be taken out of."""
    return "scope" in text.lower() or path.name == "errors.py"


def test_the_words_of_the_core_are_really_read(tmp_path: Path) -> None:
    """The check sees names, strings and f-strings, and neither docstrings nor comments."""
    path = tmp_path / "module.py"
    path.write_text('"""django"""\nimport flask  # celery\nx = f"psycopg {flask} fastapi"\n')
    seen = " ".join(text for _, text, _ in words(path))
    assert "flask" in seen
    assert "psycopg" in seen
    assert "fastapi" in seen
    assert "django" not in seen
    assert "celery" not in seen
