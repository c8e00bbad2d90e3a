"""The helpers of these tests are modules beside them; tests have no packages."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
