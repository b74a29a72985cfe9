"""Every way a unit or a worker can end."""
