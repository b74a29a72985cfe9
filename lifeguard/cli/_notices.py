"""What is wrong with the installation itself, said before anything else."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "lifeguard-pool"
THEIRS = "lifeguard"


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version() -> str:
    """Of the distribution, or of the package where it is used from a source tree."""
    from lifeguard import __version__

    return _installed(OURS) or __version__


def both_distributions(installed: Callable[[str], str | None] = _installed) -> str | None:
    """What to say if PyPI's `lifeguard`, another project with our import name, is installed too."""
    ours, theirs = installed(OURS), installed(THEIRS)
    if ours is None or theirs is None:
        return None
    return (
        f"two distributions are installed that both own `import lifeguard`: "
        f"{OURS} {ours} (this one) and {THEIRS} {theirs} (another project). "
        f"Each overwrites files of the other. "
        f"Do: pip uninstall -y {THEIRS} {OURS} && pip install {OURS}"
    )


def notices() -> list[str]:
    return [text for text in (both_distributions(),) if text is not None]
