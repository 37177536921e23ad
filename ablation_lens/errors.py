"""The errors a user can meet: one base class, a few kinds.

Every message says what came in, what was expected, and what to do. The command line prints
the message alone and exits with code 2.
"""

from ablation_lens.escaping import on_one_line


class AblationLensError(Exception):
    """Base class of every error this package raises on purpose."""

    def __str__(self) -> str:
        # Messages name models, files and columns: what those hold must not reach a terminal as an order.
        return on_one_line(super().__str__())


class ModelError(AblationLensError):
    """A model could not be found, read or hooked."""


class CorpusError(AblationLensError):
    """A corpus could not be found, read or used with this model."""


class FileFormatError(AblationLensError):
    """A file is truncated, foreign, tampered with, or from another format version."""


class MismatchError(AblationLensError):
    """Two things that do not belong together: shapes, models, sites, dtypes."""


class NonFiniteError(AblationLensError):
    """NaN or infinity where numbers were expected."""
