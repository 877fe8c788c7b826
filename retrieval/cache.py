"""Where retrokit keeps what it can make again."""

import os
from pathlib import Path


def cache_home() -> Path:
    """The folder `retrokit` in `$XDG_CACHE_HOME` or `~/.cache`; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retrokit"
