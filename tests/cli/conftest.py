"""The models of the session tests are at hand here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "session"))
