"""The chaos bench: whole runs that are killed, doubled, starved and lied to, and the count of what that cost.

    python -m tests.chaos --list                 what there is
    python -m tests.chaos driver_kill --points 3 one case, small
    make chaos                                   all of it at full size, into RELIABILITY.md

Each case prints one JSON line a test. Helpers are those of the tests beside this folder, imported by their plain names.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# As conftest.py does for the tests: nothing reaches outside, and no Ray that runs here is joined.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0", RAY_TRAIN_V2_ENABLED="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1"
)
os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.pop("RAY_ADDRESS", None)
