"""What a user did that cannot work, said before anything is compiled.

The binaries print these as one line and exit with a code that is not 0; everything else
that is raised is a bug of the library and keeps its traceback.
"""

from collections.abc import Iterable
from typing import Any


class FedrasError(ValueError):
    """Base of every error that the user can mend."""


class DataError(FedrasError):
    """A file, a dataset name or the interactions in it."""


class SpecError(FedrasError):
    """A name, a value or a combination in a `Spec`, a flag or a factory's argument."""


class DivergedError(FedrasError):
    """Training left the finite numbers; what was written until then is kept."""


class StoppedError(FedrasError):
    """A run was asked to stop, and has saved where it stands: the same command goes on."""


class LostError(FedrasError):
    """Another process of the same run is gone: the same command goes on from its checkpoint."""


class ResultsError(FedrasError):
    """A results folder that cannot be written to or read from."""


class WireError(FedrasError):
    """Bytes that are no payload of this codec and table, or a payload that cannot be written."""


def one_of(owner: str, allowed: Iterable[Any], **values: Any) -> None:
    """Refuses an argument that is none of those allowed.

    Args:
      owner: whose argument it is.
      allowed: what it may be.
      values: the argument, by its name.

    Raises:
      SpecError: it is something else.
    """
    allowed = list(allowed)
    for name, value in values.items():
        if value not in allowed:
            raise SpecError(f"{owner}: {name} must be one of {allowed}, not {value!r}")
