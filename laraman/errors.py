"""Every exception laraman raises. The type says whose fault it is.

    LaramanError
      ConfigError            the command line, the environment or pyproject.toml is wrong        exit code 2
      BootError              the configuration is right, but a worker cannot start               exit code 3
      ProtocolError          bytes or messages that the protocol does not allow
        LocalProtocolError     ours, or the application's: a bug on this side
        RemoteProtocolError    the peer's; carries the HTTP status or websocket close code to answer with
      ConnectionClosed       this side closed the connection
      ConnectionLost         the peer or the network ended it
      LinkDown               the link has no connection at the moment
      UnknownGateway         no gateway that is configured has this client; a LookupError too
      Busy                   a queue or a limit is full
      TaskError              what another process was asked to do raised there
      Pollution              an operation changed the process for others
      IllegalTransition      a state machine was asked for a step its table does not have: a bug, always loud
"""

from __future__ import annotations

#: Characters that other processes are told of an exception's message, and of its traceback, from the end.
MAX_REMOTE_MESSAGE, MAX_REMOTE_TRACEBACK = 2000, 16_000


class LaramanError(Exception):
    """Base of every error laraman raises on purpose."""

    exit_code = 1


class ConfigError(LaramanError):
    """An option, environment variable or configuration file is wrong."""

    exit_code = 2


class BootError(LaramanError):
    """A worker cannot start: its code does not import, its startup failed, its address is taken."""

    exit_code = 3


class ProtocolError(LaramanError):
    """The protocol does not allow this."""


class LocalProtocolError(ProtocolError):
    """This side tried to send something the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol does not allow.

    ``status_hint`` is the HTTP status to answer with, ``close_code`` the websocket close code (RFC 6455 section 7.4.1).
    """

    def __init__(self, message: str, *, status_hint: int = 400, close_code: int = 1002) -> None:
        super().__init__(message)
        self.status_hint = status_hint
        self.close_code = close_code


class ConnectionClosed(LaramanError):
    """This side has closed the connection."""


class ConnectionLost(LaramanError):
    """The peer or the network ended the connection; ``__cause__`` has the operating system's error, if any."""


class LinkDown(LaramanError):
    """The link is not connected and the call does not wait for it."""


class UnknownGateway(LaramanError, LookupError):
    """The id of a websocket client begins with an address that no configured gateway has."""


class Busy(LaramanError):
    """A bounded queue or a limit is full; nothing was taken."""


class TaskError(LaramanError):
    """What another process was asked to do raised there: the ``type`` of that exception, its ``message``, and its ``traceback`` as text."""

    def __init__(self, type: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message
        self.traceback = traceback

    @classmethod
    def of(cls, exc: BaseException, trace: str) -> TaskError:
        """What is told of ``exc``, and of ``trace`` the end: no more than fits into a message, and all of it can be encoded."""
        kind = type(exc)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        try:
            message = str(exc)
        except Exception as broken:
            message = f"its text cannot be had: {type(broken).__name__}"
        texts = (name, message[:MAX_REMOTE_MESSAGE], trace[-MAX_REMOTE_TRACEBACK:])
        return cls(*(text.encode(errors="backslashreplace").decode() for text in texts))

    def __reduce__(self) -> tuple[object, ...]:
        return TaskError, (self.type, self.message, self.traceback)


class Pollution(LaramanError):
    """An operation changed what it shares with others: the environment, a setting of the whole process. Raised under ``--guard strict``."""


class IllegalTransition(LaramanError):
    """A state machine has no such step. Nothing was changed."""
