"""``python -m tests.faults.child INSTRUMENTS WORDS``: ``python -m shapley WORDS`` with the instruments of a fork.

Started in the folder of a run's own copy of the code, which comes before the repository's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shapley.cli.main import main
from tests.faults.instruments import Instruments

if __name__ == "__main__":
    settings = json.loads(sys.argv.pop(1))
    Instruments(**{**settings, "items": Path(settings["items"])}).apply()
    main()
