"""`lifeguard demo`: the same small apps, bare and guarded, on real servers and a real PostgreSQL.

Nothing here is part of the library: the apps under `apps/` are what a user would write, `load.py`
is their users, `servers.py` starts them, and the only witness is PostgreSQL itself (`witness.py`).
"""
