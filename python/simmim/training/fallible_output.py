"""Output that may stop being possible in the middle of a run: a closed pipe, a full disk."""

from __future__ import annotations

from collections.abc import Callable


class FallibleOutput:
    """Calls functions that write to one place until one of them fails.

    Args:
        where: the place, for the error; empty where it needs no name.

    Attributes:
        error: the first failure, ``None`` as long as there is none. A closed pipe is a
            ``BrokenPipeError``.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.error: OSError | None = None

    def __call__(self, write: Callable[..., object], *args: object, **options: object) -> bool:
        """Call ``write``, unless something failed before; whether it succeeded."""
        if self.error is not None:
            return False
        try:
            write(*args, **options)
        except OSError as error:
            # OSError picks the subclass that belongs to the number
            self.error = OSError(error.errno, error.strerror or str(error), self.where or None)
            return False
        return True
