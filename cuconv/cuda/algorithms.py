"""The table of CUDA algorithms: when each applies, its tiles, its launches, its estimated time.

Empty in this version: a CuPy array is refused before any work, with the reason.
"""

from __future__ import annotations

from ..problem import OPS
from ..table import Table

TABLE: Table = dict.fromkeys(OPS, ())
