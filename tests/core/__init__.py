"""Tests of ``lifeguard._core``: one file a module."""
