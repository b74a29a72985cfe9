"""Somebody's project with tests of its own, run with lifeguard.django and without."""
