"""Print docs/telemetry.schema.json: ``python scripts/telemetry_schema.py``."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from broker.telemetry import schema

print(json.dumps(schema(), indent=2, ensure_ascii=False))
