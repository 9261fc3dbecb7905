"""The one error that means "the person, not the program, can mend this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a flag, a config, a file or a request, told in words that mend it.

    Its message names the field, tensor or line, the value found, and what would be accepted. The
    command line prints it without a traceback and exits with its `status`; every other exception is
    a bug of ours and keeps its traceback.

    Attributes:
      status: 2, the mistake stays until a person mends it; `AGAIN` where it may mend itself.
    """

    status = 2


AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: the same command may succeed later. Launchers try it again."""


def hint(name: str, accepted: Iterable[str], prefix: str = "") -> str:
    """Ends a message about an unknown `name`: the most similar accepted one, or else all of them.

    `prefix` stands before each name in the message, and counts for no similarity.
    """
    accepted = list(accepted)
    close = difflib.get_close_matches(name, accepted, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there are: {', '.join(prefix + other for other in accepted)}"
