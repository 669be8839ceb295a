"""Owns one call of any Kahuna API from the shell: JSON in and out, and exit codes that scripts can use.

Nothing but results goes to standard output; progress and what went wrong go to standard error. Refuses to keep
anything but the position that `--cursor-file` asks for, to use the database, and to speak HTTP itself: that is the
client's.
"""

from service.shell.commands import kahuna
from service.shell.running import Surroundings

__all__ = ["Surroundings", "kahuna"]
