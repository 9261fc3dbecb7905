"""What goes wrong with data, told to the user whose data it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaya_jax.errors import UserError


@contextmanager
def as_user_errors(what: str, place: Path | str) -> Iterator[None]:
    """Mistakes in the data, and places that cannot be written to, as errors of the user's.

    Args:
      what: is read; the beginning of the message.
      place: is written to.

    Raises:
      UserError: in place of the ValueError, ImportError or OSError inside of the block.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise UserError(f"{what}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read the data, or not write to {place}: {error}") from error
