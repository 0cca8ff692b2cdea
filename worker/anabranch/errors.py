"""The tree of errors that Anabranch raises on purpose.

    AnabranchError
    ├── DefinitionError      an App, agent, tool or limit is declared wrongly; raised where it is declared
    ├── ConfigError          a setting is missing or has a wrong value
    ├── AppNotFound          `module:attribute` or `path.py` names no App
    ├── WireError            a record or a body does not fit the contract in docs/wire.md
    │   └── InvalidRequest   ... in a request: it is answered with `invalid_request`
    ├── TooLarge             a record would not fit into its topic
    ├── StoreError           what lies in the store cannot be had: missing, corrupt, too large, or no store is set
    │   ├── StoreUnavailable ... because the store, or who has the keys, cannot be reached at present
    │   ├── ObjectLost       ... because the store that is set here does not have it, or has other bytes under its name
    │   └── SealError        ... because it is sealed: no keys are set here, or it does not open with the tenant's key
    │       └── Forgotten    ... which was deleted: nobody will read it again
    ├── BrokerError          Kafka cannot be reached, refuses, or lost something
    │   ├── TopicsError      a topic is missing or misconfigured; names the setting and the command that mends it
    │   └── Forbidden        Kafka's access control denies us something; names who, what, and the command that allows it
    └── RunFailed            raised by `Run.output()` for a run that did not complete

Every message says what was wrong, with which value, and what to do about it.
"""

from __future__ import annotations


class AnabranchError(Exception):
    """The root: `except AnabranchError` catches everything that is ours."""


class DefinitionError(AnabranchError):
    """A declaration is wrong; the message says what to change."""


class ConfigError(AnabranchError):
    """A setting is missing or has a wrong value."""


class AppNotFound(AnabranchError):
    """What was named on the command line is not an App."""


class WireError(AnabranchError):
    """A record does not fit the contract."""


class InvalidRequest(WireError):
    """A request that cannot be run; `code` is the `error.code` of its answer."""

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code


class TooLarge(AnabranchError):
    """A record would be larger than its topic takes."""


class StoreError(AnabranchError):
    """An object of the store cannot be had or kept, and no repetition cures it."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or refuses: worth another try. So with whoever has the keys."""


class ObjectLost(StoreError):
    """The store does not have an object that was put there, or has other bytes under its name."""


class SealError(StoreError):
    """A sealed field cannot be opened or made: without keys, or with another key than it was sealed with."""


class Forgotten(SealError):
    """The tenant's key was deleted. What was sealed with it cannot be read, and nothing more will be."""


class BrokerError(AnabranchError):
    """Kafka cannot be reached or refuses what we ask of it."""


class TopicsError(BrokerError):
    """A topic is missing or set up so that data could be lost."""


class Forbidden(BrokerError):
    """Kafka does not allow our user what a worker needs."""


class RunFailed(AnabranchError):
    """A run ended as something other than completed."""

    def __init__(self, run_id: str, status: str, code: str, message: str) -> None:
        super().__init__(f"run {run_id!r} {status}: {code}: {message}")
        self.run_id, self.status, self.code, self.message = run_id, status, code, message
