"""The command line as a user or a script meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lifeguard.cli._demo.scenarios import SCENARIOS
from lifeguard.cli._notices import both_distributions

pytestmark = pytest.mark.timeout(300)


def lifeguard(*args, env=None, code=None):
    argv = ["-c", code] if code else ["-m", "lifeguard.cli"]
    return subprocess.run(
        [sys.executable, *argv, *args],
        env={**os.environ, "COLUMNS": "100", **(env or {})},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_help_teaches():
    done = lifeguard("--help")
    assert done.returncode == 0
    assert "lifeguard demo --scenario fork" in done.stdout
    done = lifeguard("demo", "--help")
    for option in ("--list", "--scenario", "--json", "--seconds", "--html", "--no-html"):
        assert option in done.stdout


def test_version():
    import lifeguard as package

    assert lifeguard("--version").stdout.split()[0] == "lifeguard"
    assert package.__version__ in lifeguard("--version").stdout


def test_list_for_people_and_for_scripts():
    done = lifeguard("demo", "--list")
    assert done.returncode == 0
    assert all(scenario.name in done.stdout for scenario in SCENARIOS)
    listed = json.loads(lifeguard("demo", "--list", "--json").stdout)
    assert [each["name"] for each in listed] == [scenario.name for scenario in SCENARIOS]
    assert {"workers", "fork", "disconnects", "wsgi"} <= {each["name"] for each in listed}


def test_an_unknown_scenario_is_refused_with_the_known_ones():
    done = lifeguard("demo", "--scenario", "forks")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "'forks'" in done.stderr
    assert "workers, fork, disconnects, wsgi" in done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_so_in_one_line(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import lifeguard.cli as c; c.main()"
    done = lifeguard("demo", code=code)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"lifeguard: the command line needs {missing}, which is not installed. "
        "Do: pip install 'lifeguard-pool[demo]'\n"
    )


def test_without_a_server_the_demo_says_so_in_one_line():
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'gunicorn' else find(name, *a)\n"
        "import lifeguard.cli; lifeguard.cli.main()"
    )
    done = lifeguard("demo", code=code)
    assert done.returncode == 2
    assert "gunicorn" in done.stderr
    assert "pip install 'lifeguard-pool[demo]'" in done.stderr


def test_an_unreachable_database_is_told_without_its_password():
    dsn = "postgresql://me:hush@127.0.0.1:1/nowhere"
    done = lifeguard("demo", "--no-html", env={"LIFEGUARD_DSN": dsn})
    assert done.returncode == 2
    text = done.stdout + done.stderr
    assert "cannot connect to PostgreSQL" in text
    assert "LIFEGUARD_DSN" in text
    assert "Traceback" not in text
    assert "hush" not in text


def test_the_other_lifeguard_beside_ours_is_noticed(tmp_path):
    """A real look into the metadata of this environment, with a second distribution in it."""
    info = tmp_path / "lifeguard-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lifeguard\nVersion: 9.9\n")
    done = lifeguard("demo", "--list", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0
    json.loads(done.stdout)  # the notice does not disturb a script
    assert "lifeguard 9.9 (another project)" in done.stderr
    assert "pip uninstall -y lifeguard lifeguard-pool && pip install lifeguard-pool" in done.stderr


def test_one_distribution_alone_is_no_reason_to_speak():
    assert both_distributions({"lifeguard-pool": "1.0"}.get) is None
    assert both_distributions({"lifeguard": "9.9"}.get) is None
    assert lifeguard("demo", "--list").stderr == ""
