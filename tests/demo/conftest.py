"""The demo's scripts are no package: they are found in their folder, under their plain names."""

import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "demo"
if str(DEMO) not in sys.path:
    sys.path.append(str(DEMO))
