"""Let the campaign's modules import each other by their plain names, as scripts do."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "golden")]
