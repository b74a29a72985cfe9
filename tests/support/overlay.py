"""Other versions of a package than the environment has: folders to put first on PYTHONPATH.

::

    env = {**os.environ, "PYTHONPATH": f"{overlay('django42')}:{ROOT}"}

What is in one stands in ``requirements/overlays/<name>.txt``, with hashes. It is installed once, by
pip, into a folder of the project that git ignores; later runs, and runs beside this one, find it.
Only subprocesses are meant to see it: this process has the environment's versions imported already.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements" / "overlays"
MADE = ROOT / ".lifeguard" / "overlays"

NOT_FOR = {
    "django60": (lambda python: python < (3, 12), "Django 6.0 needs Python 3.12 or newer"),
    "granian132": (lambda python: python > (3, 12), "granian 1.3.2 has wheels up to Python 3.12"),
    "granian144": (lambda python: python > (3, 12), "granian 1.4.4 has wheels up to Python 3.12"),
}

INSTALL_WITHIN = 240.0
"""Seconds, with a slow network. Ten are usual."""


class OverlayError(RuntimeError):
    """The packages are not there, and could not be installed. The message says why."""


def missing_because(name: str) -> str | None:
    """Why this Python cannot have the overlay, for ``pytest.skip``; None where it can."""
    applies, reason = NOT_FOR.get(name, (lambda python: False, ""))
    return reason if applies(sys.version_info[:2]) else None


def overlay(name: str) -> Path:
    """The folder to put first on PYTHONPATH, installed if it is not there yet."""
    requirements = REQUIREMENTS / f"{name}.txt"
    if not requirements.is_file():
        known = ", ".join(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
        raise OverlayError(f"there is no overlay {name!r}; there are: {known}")
    if reason := missing_because(name):
        raise OverlayError(f"overlay {name!r}: {reason}, and this is {sys.version.split()[0]}")
    tag = f"{sys.implementation.cache_tag}-{os.uname().machine}"
    version = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = MADE / f"{name}-{tag}-{version}"
    if not folder.is_dir():
        MADE.mkdir(parents=True, exist_ok=True)
        with (MADE / f"{name}-{tag}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it, however this process ends
            if not folder.is_dir():
                _install(name, requirements, folder)
    return folder


def _install(name: str, requirements: Path, folder: Path) -> None:
    """All of it or nothing: into a folder beside it, which then gets the name."""
    start = time.monotonic()
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=MADE))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    try:
        made = subprocess.run(
            [*pip, *options, "--target", str(unfinished), "-r", str(requirements)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_WITHIN,
            check=False,
        )
        if made.returncode:
            raise OverlayError(
                f"pip could not install {requirements.relative_to(ROOT)} for this test; a test "
                f"that needs it cannot run without a package index:\n{made.stderr.strip()}"
            )
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except subprocess.TimeoutExpired:
        raise OverlayError(
            f"pip did not install {requirements.relative_to(ROOT)} in {INSTALL_WITHIN:.0f} s"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    seconds = time.monotonic() - start
    print(f"overlay {name}: installed in {seconds:.0f} s", file=sys.__stderr__, flush=True)
