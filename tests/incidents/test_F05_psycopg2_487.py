"""psycopg/psycopg2#487: is a connection that was open before the fork safe if one takes turns?

The documentation says that it must not be used; the question is why, as it seems to work. Taking
turns keeps the protocol in order. What the processes share beyond that is the transaction.
"""

from __future__ import annotations

from tests.incidents.serving import Process, Sides


def test_incident_F05(sides: Sides) -> None:
    """One process rolls its order back; another had asked something meanwhile, in its turn.

    Bare, the end of the other's block committed the half of the order that was there, and the
    rollback had nothing left to undo. Guarded, each process has a connection of its own.
    """
    bare, guarded = sides.run("f05")
    assert status(bare) == "committed", bare.said()
    assert status(guarded) == "aborted", guarded.said()


def status(process: Process) -> str:
    assert process.log.count("rolled back") == 1, process.said()
    (event,) = process.log.read("transaction")
    answer: str = event["status"]
    return answer
