"""django/asgiref#368: ``thread_sensitive=True`` calls of two requests run in two threads at once.

The documentation promised one shared thread, and each request has one of its own: a function that
is not thread-safe runs twice at a time. With each of those threads comes a connection.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.incidents.serving import Process, Sides

REQUESTS = 2


def test_incident_H10(sides: Sides) -> None:
    """Bare, both requests are in the function at the same time, in two threads.

    Guarded, with one lane, one after the other and in one thread, with one connection. All calls
    of a request, in its tasks too, are in one thread on either side.
    """
    bare, guarded = sides.serve("uvicorn", "h10")
    assert visit(bare) == (["enter f", "enter f", "exit f", "exit f"], REQUESTS, REQUESTS)
    assert visit(guarded) == (["enter f", "exit f", "enter f", "exit f"], 1, 1)


def visit(side: Process) -> tuple[list[str], int, int]:
    """What happened in the function, and in how many threads and connections."""
    with ThreadPoolExecutor(REQUESTS) as clients:
        answers = [answer.json() for answer in clients.map(side.get, ["/"] * REQUESTS)]
    assert all(len(answer["threads"]) == 1 for answer in answers), answers
    threads = {answer["threads"][0] for answer in answers}
    backends = {answer["backend"] for answer in answers}
    return (
        [event.event for event in side.log.read("enter f", "exit f")],
        len(threads),
        len(backends),
    )
