"""What comes out: errors in one group, in words, without secrets."""

from __future__ import annotations

import asyncio
import string
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import lifeguard
from lifeguard import CloseErrors
from lifeguard._core.errors import explain, redact, summarize
from lifeguard._core.worker import failed_to_open

# -- the tree -------------------------------------------------------------------------------------


def test_one_base_catches_everything_lifeguard_raises() -> None:
    """Errors are LifeguardError, warnings are ResourceWarning."""
    errors = [lifeguard.NotOpenError, lifeguard.ClosedError, lifeguard.WrongProcessError]
    assert all(issubclass(error, lifeguard.LifeguardError) for error in [*errors, CloseErrors])
    assert issubclass(CloseErrors, ExceptionGroup)
    warnings = [lifeguard.LeakWarning, lifeguard.UnclosedWarning]
    assert all(issubclass(warning, ResourceWarning) for warning in warnings)


def test_a_part_of_a_group_is_a_group_of_the_same_kind() -> None:
    """`except*` and split() keep the class, so that `except LifeguardError` still fits."""
    group = CloseErrors("closing", [ValueError("1"), OSError("2")])
    some, rest = group.split(ValueError)
    assert isinstance(some, CloseErrors)
    assert isinstance(rest, CloseErrors)
    assert (some.message, [str(exc) for exc in some.exceptions]) == ("closing", ["1"])
    caught: list[Any] = []
    try:
        raise group
    except* OSError as exc:
        caught.append(exc)
    except* ValueError as exc:
        caught.append(exc)
    assert [type(exc) for exc in caught] == [CloseErrors, CloseErrors]


def test_errors_are_summarized_in_one_group() -> None:
    """Also a single one: whoever catches always finds the same shape."""
    one, two = ValueError("1"), OSError("2")
    group = summarize("the unit ended with errors", [one])
    assert isinstance(group, CloseErrors)
    assert (group.message, group.exceptions) == ("the unit ended with errors", (one,))
    group = summarize("the unit", [one, two])
    assert isinstance(group, CloseErrors)
    assert group.exceptions == (one, two)


@pytest.mark.parametrize(
    "fatal",
    [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()],
    ids=lambda exc: type(exc).__name__,
)
def test_what_is_not_an_exception_is_raised_as_itself(fatal: BaseException) -> None:
    """In a group it would lose its meaning. What else went wrong is its context."""
    fatal.__context__ = None
    error, second = ValueError("1"), KeyboardInterrupt("second")
    assert summarize("closing", [error, fatal, second]) is fatal
    assert isinstance(fatal.__context__, CloseErrors)
    assert fatal.__context__.exceptions == (error,)
    alone = type(fatal)()
    assert summarize("closing", [alone]) is alone
    assert alone.__context__ is None


def test_the_context_an_error_has_is_kept() -> None:
    """A KeyboardInterrupt that came out of another error goes on saying so."""
    reason = OSError("why")
    fatal = KeyboardInterrupt()
    fatal.__context__ = reason
    assert summarize("closing", [ValueError(), fatal]) is fatal
    assert fatal.__context__ is reason


# -- in words -------------------------------------------------------------------------------------


def test_an_error_is_explained_in_one_line() -> None:
    """Type and message, whatever whitespace the driver put into it."""
    assert explain(OSError("no\n\tanswer   here")) == "OSError: no answer here"
    assert explain(KeyError()) == "KeyError"


def test_a_failure_to_open_comes_with_its_notes() -> None:
    """Which resource it was, and which host, is in notes: a server logs one line."""
    error = ConnectionError("refused")
    error.add_note("while resource 'db' was opened")
    error.add_note("host=db password=s3cret")
    assert failed_to_open(error) == (
        "ConnectionError: refused (while resource 'db' was opened host=db password=***"
    )


# -- without secrets ------------------------------------------------------------------------------

KNOWN = [
    ("postgresql://app:s3cret@db:5432/app", "postgresql://app:***@db:5432/app"),
    ("postgres://app:s3cret@db", "postgres://app:***@db"),
    (
        'invalid dsn "postgresql://app:s3cret@db/app": no',
        'invalid dsn "postgresql://app:***@db/app": no',
    ),
    (
        "postgresql+psycopg://app:s3cret@db/app?sslmode=on",
        "postgresql+psycopg://app:***@db/app?sslmode=on",
    ),
    ("postgresql://:s3cret@db/app", "postgresql://:***@db/app"),
    ("postgresql://app:s3@cret@db/app", "postgresql://app:***@db/app"),
    ("postgresql://app:s3/cret@db/app", "postgresql://app:***@db/app"),
    ("postgresql://app:s3?cr#et@db/app", "postgresql://app:***@db/app"),
    ("postgresql://app:s3:cret@db/app", "postgresql://app:***@db/app"),
    ("postgresql://app:s3 cret@db/app", "postgresql://app:***@db/app"),
    ("postgresql://app:s3'cr\"et@db/app", "postgresql://app:***@db/app"),
    (
        "postgresql://db/app?user=app&password=s3cret&port=1",
        "postgresql://db/app?user=app&password=***&port=1",
    ),
    ("postgresql://db/app?sslpassword=s3cret", "postgresql://db/app?sslpassword=***"),
    ("host=db password=s3cret dbname=app", "host=db password=*** dbname=app"),
    ("host=db PASSWORD = s3cret", "host=db PASSWORD = ***"),
    ("password='s3 cret' host=db", "password=*** host=db"),
    (r"password='s3\'cr et' host=db", "password=*** host=db"),
    (r"password=s3\ cret host=db", "password=*** host=db"),
    ("password=s3'cret host=db", "password=*** host=db"),
    ('password=s3"cret host=db', "password=*** host=db"),
    ("sslpassword=s3cret host=db", "sslpassword=*** host=db"),
    ("PGPASSWORD=s3cret psql", "PGPASSWORD=*** psql"),
    ("{'host': 'db', 'password': 's3cret'}", "{'host': 'db', 'password': ***}"),
    (
        "postgresql://a:s3cret@db/x and postgresql://b:other@db/y",
        "postgresql://a:***@db/x and postgresql://b:***@db/y",
    ),
]


@pytest.mark.parametrize(("text", "wanted"), KNOWN)
def test_known_forms_are_redacted_and_the_rest_stays(text: str, wanted: str) -> None:
    """What helps to find the mistake stays: scheme, user, host, port, database."""
    assert redact(text) == wanted


HARMLESS = [
    "connection to server at 127.0.0.1, port 5432 failed: Connection refused",
    "postgresql://db/app",
    "postgresql://app@db:5432/app",
    "no password was supplied",
    "see https://example.org:8080/a@b for more",
    "postgresql://db:5432/app is down: ask someone@example.org",
    "write to someone@example.org: it is 12:30",
    "",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    """Redaction changes nothing that is not a password."""
    assert redact(text) == text


# Marked at both ends, so that a part of it that is left behind can be told from the rest.
secrets = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20
).map(lambda text: f"Xq7{text}Zj9")
around = st.sampled_from(["", 'could not connect: "', "invalid connection string ("])


def assert_redacted(text: str, host: str) -> None:
    result = redact(text)
    assert "Xq7" not in result
    assert "Zj9" not in result
    assert host in result


@given(secret=secrets, before=around)
@example(secret="Xq7/@:?#[]&'\"\\ Zj9", before="")
def test_no_part_of_an_encoded_password_is_left_in_a_uri(secret: str, before: str) -> None:
    """A URI as it has to be written, its password percent-encoded, in any text."""
    text = f"{before}postgresql://app:{quote(secret, safe='')}@db.example:5432/app) failed"
    assert_redacted(text, "@db.example:5432/app")


@given(secret=secrets, before=around)
def test_no_part_of_an_encoded_password_is_left_in_a_query(secret: str, before: str) -> None:
    """The password may be a parameter of the URI instead."""
    text = f"{before}postgresql://db.example/app?password={quote(secret, safe='')}&port=5432"
    assert_redacted(text, "db.example/app")


raw_secrets = st.text(
    string.ascii_letters + string.digits + "/@:?#[]&'\"\\!$%^*()-+,; ", max_size=20
)


@given(secret=raw_secrets, before=around)
@example(secret="/", before="")
@example(secret="' ", before="")
def test_no_part_of_a_raw_password_is_left_in_a_uri(secret: str, before: str) -> None:
    """People forget to encode. That is when drivers quote the URI in an error."""
    assert_redacted(f"{before}postgresql://app:Xq7{secret}Zj9@db.example/app", "@db.example/app")


@given(secret=secrets, before=around)
@example(secret="Xq7\\'Zj9", before="")
@example(secret="Xq7\\", before="")
def test_no_part_of_a_quoted_password_is_left(secret: str, before: str) -> None:
    """Keyword form, quoted and escaped as libpq has it."""
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    assert_redacted(f"{before}host=db.example password='{quoted}' port=5432", "host=db.example")


@given(secret=secrets, before=around)
@example(secret="Xq7 \\'Zj9", before="")
def test_no_part_of_an_unquoted_password_is_left(secret: str, before: str) -> None:
    """Keyword form without quotes: white space and backslashes are escaped by a backslash."""
    escaped = "".join(f"\\{c}" if c.isspace() or c in "\\'" else c for c in secret)
    assert_redacted(f"{before}host=db.example password={escaped} port=5432", "host=db.example")


@given(secret=secrets)
def test_no_part_of_a_password_is_left_in_an_explanation(secret: str) -> None:
    """Also after white space was folded."""
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    text = explain(ConnectionError(f"host=db.example\n password='{quoted}'\n  port=1"))
    assert text.startswith("ConnectionError: host=db.example password=")
    assert "Xq7" not in text
    assert "Zj9" not in text


def test_white_space_that_ends_no_password_is_folded_after_it_is_gone() -> None:
    """libpq knows ASCII white space only: a no-break space is a part of the password."""
    text = explain(ConnectionError("host=db password=Xq7\u00a0Zj9\nport=1"))
    assert text == "ConnectionError: host=db password=*** port=1"
