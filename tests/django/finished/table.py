"""The endings that are played, and what Django makes of each of them by itself.

It stands apart from the players because they configure Django, and whoever reads this does not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ending:
    finished: int = 1
    """How often ``request_finished`` comes without lifeguard."""
    closed: int = 0
    """How often the view's response is closed without lifeguard."""
    response: bool = False
    """Whether there is a response of the view's, so that it has to be closed once."""
    started: int = 1
    closers: int = 1
    """How often what the response holds is closed, if there is a response. Its own close() may
    not get that far."""


_answer = Ending(1, 1, True)
_error_page = Ending(1)
_lost = Ending(0)
_lost_response = Ending(0, 0, True)

ASGI = {
    "sync view answers": _answer,
    "async view answers": _answer,
    "sync view raises": _error_page,
    "async view raises": _error_page,
    "sync middleware raises": _error_page,
    "async middleware raises": _error_page,
    "sync middleware raises, late": _error_page,
    "view raises CancelledError": _lost,
    "sync stream completes": _answer,
    "async stream completes": _answer,
    "sync generator raises": _lost_response,
    "async generator raises": _lost_response,
    "the query string is not UTF-8": _error_page,
    "sync view raises out of Django": _lost,
    "async view raises out of Django": _lost,
    "a receiver raises": _answer,
    "generator and receiver raise": _lost_response,
    "send raises": _lost_response,
    "send raises at the body": _lost_response,
    "send raises in a stream": _lost_response,
    "send raises in a sync stream": _lost_response,
    "server cancels in an async view": _lost,
    "server cancels in a sync view": _lost,
    "server cancels twice in a sync view": _lost,
    "server cancels in a stream": _lost_response,
    "client leaves in an async view": _error_page,
    "client leaves in a sync view": _error_page,
    "client leaves in a stream": _answer,
    "client leaves in the body": Ending(0, started=0),
    "the body is too large": _error_page,
    "server cancels while send hangs": _lost_response,
    "server cancels while a receiver runs": _answer,
    "client leaves in a sync stream": _answer,
    "close() raises": Ending(0, 1, True, closers=0),
    "a receiver raises at the start": _lost,
}

UNHEARD = {
    "client leaves in an async view": _answer,
    "client leaves in a sync view": _answer,
}
"""Django 4.2 does not listen for a disconnect, and answers."""

WSGI = {
    "view answers": _answer,
    "async view answers": _answer,
    "view raises": _error_page,
    "middleware raises": _error_page,
    "stream completes": _answer,
    "generator raises": _answer,
    "close() raises": Ending(0, 1, True, closers=0),
    "view raises out of Django": _lost,
    "a receiver raises": _answer,
    "start_response raises": _lost_response,
    "start_response raises, for a stream": _lost_response,
    "never closed": _lost_response,
    "stream never closed": _lost_response,
    "stream that raises never closed": _lost_response,
    "stream dropped after the first chunk": _lost_response,
    "stream closed after the first chunk": _answer,
    "never read": _answer,
    "closed twice": Ending(2, 2, True),
    "stream closed twice": Ending(2, 2, True),
    "closed in another thread": _answer,
    "stream closed in another thread": _answer,
    "stream read and closed in another thread": _answer,
    "a middleware does not pass close() on": _lost_response,
}

HANDLER = (
    "an_answer_is_complete",
    "headers_that_repeat_are_joined",
    "a_body_arrives_in_pieces",
    "a_body_larger_than_memory_arrives",
    "a_body_is_closed_whether_it_was_read_or_not",
    "another_type_of_connection_is_refused",
    "a_file_is_sent_and_closed",
    "a_stream_arrives_as_it_is_made",
    "a_stream_ends_when_its_client_leaves",
    "nothing_happens_without_a_body",
    "a_view_is_cancelled_when_its_client_leaves",
    "a_view_may_clean_up_after_a_disconnect",
    "a_request_has_one_thread",
    "requests_run_beside_each_other",
    "more_requests_than_lanes_are_all_answered",
    "context_variables_cross_over",
    "bridges_and_transactions_keep_their_connection",
)
"""What is asked of Django's handler in ``handler.py``."""
