"""slackapi/bolt-python#509: a bot's framework closes Django's connections after each message.

Listeners run in the framework's own threads, so it has to clean up after them, and closed what was
open: with ``CONN_MAX_AGE`` set, each message connects anew all the same. Which function is the
right one, and in which thread, took two more pull requests (#512, #514); what its author wished for
is an executor for Django that everybody can use.
"""

from __future__ import annotations

from tests.incidents.serving import Sides

MESSAGES = 10


def test_incident_H07(sides: Sides) -> None:
    """``CONN_MAX_AGE=60``. Bare, ten messages are ten connections. Guarded, they are one.

    The framework takes any executor: ``lifeguard.ThreadPoolExecutor``, and no handler.
    """
    bare, guarded = sides.run("h07")
    assert bare.log.count("answered") == guarded.log.count("answered") == MESSAGES, guarded.said()
    assert len({event["backend"] for event in bare.log.read("answered")}) == MESSAGES
    assert len({event["backend"] for event in guarded.log.read("answered")}) == 1
