"""The project's own guard, as ``LIFEGUARD["GUARD"]`` names it: its grace is a test's to choose."""

from __future__ import annotations

import lifeguard

guard = lifeguard.Lifeguard()
