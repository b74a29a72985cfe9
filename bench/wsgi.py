"""What a unit adds to a WSGI request, against werkzeug's ClosingIterator, which only closes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.wsgi import ClosingIterator

import lifeguard
from bench._measure import Plan, interleave
from bench._report import Group
from bench._serve import wsgi_variant

__all__ = ["list_app", "measure"]

LIMIT = 0.35
LIST, STREAM = "list", "10-chunk stream"


def list_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def stream_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])  # no length: it streams
    return ten_chunks()


def sized_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "20")])
    return ten_chunks()


def mixed_app() -> WSGIApplication:
    """Lists, and every 20th response a stream: what only pays for one kind of body shows here."""
    turns = cycle(range(20))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return (list_app if next(turns) else stream_app)(environ, start_response)

    return app


def ten_chunks() -> Iterator[bytes]:
    for _ in range(10):
        yield b"ok"


def passthrough(app: WSGIApplication) -> WSGIApplication:
    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return app(environ, start_response)

    return middleware


def closing(app: WSGIApplication) -> WSGIApplication:
    """The usual way to do something once a WSGI response has been sent."""

    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return ClosingIterator(app(environ, start_response), nothing)

    return middleware


def wrapped(app: WSGIApplication) -> WSGIApplication:
    guarded: WSGIApplication = lifeguard.wrap(app)
    return guarded


def same(app: WSGIApplication) -> WSGIApplication:
    return app


def nothing() -> None:
    pass


def measure(plan: Plan) -> Group:
    group = Group("wsgi", "WSGI: one request; 3 other context variables", "ns")
    bodies = {
        LIST: list_app,
        STREAM: stream_app,
        "10 chunks of known length": sized_app,
        "lists, 1 in 20 a stream": mixed_app(),
    }
    for body, app in bodies.items():
        bare, yardstick, guarded = f"bare, {body}", f"ClosingIterator, {body}", f"lifeguard, {body}"
        variants = [
            wsgi_variant(bare, partial(same, app)),
            wsgi_variant(f"pass-through, {body}", partial(passthrough, app)),
            wsgi_variant(yardstick, partial(closing, app)),
            wsgi_variant(guarded, partial(wrapped, app)),
        ]
        samples = interleave(variants, rounds=plan.rounds, inner=1000)
        group.add(samples, bare=bare, yardstick=yardstick)
        if body == LIST:
            ratio = group.added_ratio(guarded, yardstick)
            group.target(f"unit, {body}", "added / added by ClosingIterator", ratio, LIMIT)
    group.yardstick = "ClosingIterator"
    return group
