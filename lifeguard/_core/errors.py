"""What lifeguard raises and warns with.

Everything is here, and only here, so that one look shows what can come out::

    LifeguardError
    ├── NotOpenError          used before it was opened, or outside of a worker or unit
    ├── ClosedError           used after it ended
    ├── WrongProcessError     used in a child of the process that opened it
    ├── CloseErrors           an exception group: what the exits of one lifetime raised
    └── LaneTimeout           a TimeoutError: all lanes were taken for too long
        └── LaneDeadlock      each of them by work that waits for this very process

    ResourceWarning
    ├── LeakWarning           borrowed in a unit, not given back by its end
    └── UnclosedWarning       a lifetime was dropped without having been closed
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class LifeguardError(Exception):
    """The base of everything lifeguard raises on its own account."""


class NotOpenError(LifeguardError):
    """It is not open: there is no worker, or no unit, here and now."""


class ClosedError(LifeguardError):
    """It has ended, and takes nothing any more."""


class WrongProcessError(LifeguardError):
    """It belongs to the process that opened it, and this is a child of that process."""


class CloseErrors(LifeguardError, ExceptionGroup[Exception]):
    """What the exits of one lifetime raised. All of them ran."""

    def derive(self, excs: Sequence[Exception]) -> CloseErrors:  # type: ignore[override]
        """Keep the class when the group is split (PEP 654)."""
        return CloseErrors(self.message, excs)


class LaneTimeout(LifeguardError, TimeoutError):
    """Work waited too long for a lane. The message says who has them, and why."""


class LaneDeadlock(LaneTimeout):
    """Each lane waits for a request that this process made, which waits for a lane."""


class LeakWarning(ResourceWarning):
    """Something was borrowed in a unit and not given back by the unit's end."""


class UnclosedWarning(ResourceWarning):
    """A lifetime was dropped without having been closed."""


for _public in (
    LifeguardError,
    NotOpenError,
    ClosedError,
    WrongProcessError,
    CloseErrors,
    LeakWarning,
    UnclosedWarning,
):
    _public.__module__ = "lifeguard"  # where people import it from
del _public


def redact(text: str) -> str:
    """*text* without the passwords that connection strings in it may carry.

    Messages of drivers quote what they were given ("invalid DSN ..."), and our own messages
    quote drivers. Both forms of libpq are known: the URI and ``password=...``. Where it is not
    clear where a password ends (people forget to encode), rather more than less is taken out.
    """
    import re

    for pattern in _SECRETS:
        text = re.sub(pattern, r"\1***", text)
    return text


_SECRETS = (
    # A URI for PostgreSQL, up to the last @ before the next one. What may be a port is none.
    (
        r"(?i)(postgres(?:ql)?(?:\+\w+)?://[^\s:/@]*:)(?!\d{1,5}(?:[/?,)\"'\s]|$)[^@\s]*(?:\s|$))"
        r"(?:(?!postgres(?:ql)?(?:\+\w+)?://).)*(?=@)"
    ),
    # Any other URI, as it has to be written.
    r"(\w+://[^\s:/@]*:)[^\s/]*(?=@)",
    # A parameter of a URI.
    r"(?i)([?&]\w*password=)[^&\s]*",
    # A keyword, quoted or not, with backslashes. Only ASCII white space ends it, as in libpq.
    (
        r"(?isa)(?<![?&\w])(\w*password\s*=\s*)"
        r"(?:'(?:[^'\\]|\\.)*(?:'|$)|\"(?:[^\"\\]|\\.)*\"(?=[\s,)]|$)|(?:\\.|\S)+)"
    ),
    # An entry of a dict.
    r"(?is)(['\"]\w*password['\"]\s*:\s*)(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")",
)


def explain(exc: BaseException) -> str:
    """*exc* in one line, without secrets: ``OperationalError: connection refused``."""
    text = " ".join(redact(str(exc)).split())  # in this order: white space ends a password
    name = type(exc).__name__
    return f"{name}: {text}" if text else name


def summarize(what: str, errors: Sequence[BaseException]) -> BaseException:
    """What to raise for *errors*, of which there is at least one: all of them in one group.

    A ``KeyboardInterrupt``, a ``SystemExit`` or a cancellation is raised as itself, or else
    it would lose its meaning; what else went wrong becomes its context.
    """
    exceptions = [exc for exc in errors if isinstance(exc, Exception)]
    group = CloseErrors(what, exceptions) if exceptions else None
    for exc in errors:
        if not isinstance(exc, Exception):
            if group is not None and exc.__context__ is None:
                exc.__context__ = group
            return exc
    assert group is not None
    return group
