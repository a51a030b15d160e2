"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
from typing import Any

from tqdm import tqdm

LOG_EVERY_S = 30.0


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar on a terminal, plain lines elsewhere.

    Args:
        settings: as for tqdm; `total`, `unit`, `desc`, `initial`, `disable`.
    """

    def __init__(self, **settings: Any) -> None:
        self.on_terminal = sys.stderr.isatty()
        if self.on_terminal:
            settings |= {"file": sys.stderr, "dynamic_ncols": True}
        else:
            # maxinterval, or a thread of tqdm's writes every ten seconds.
            settings |= {
                "file": _Lines(),
                "mininterval": LOG_EVERY_S,
                "maxinterval": 2 * LOG_EVERY_S,
                "bar_format": "{l_bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
            }
        super().__init__(**settings)

    def note(self, text: str) -> None:
        """Show a text after the numbers; in a log it is in the next line."""
        self.set_postfix_str(text, refresh=self.on_terminal)


class _Lines:
    """Standard error for a log: one line for each update, no line twice."""

    def __init__(self) -> None:
        self.last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self.last:
            sys.stderr.write(line + "\n")
            self.last = line

    def flush(self) -> None:
        sys.stderr.flush()
