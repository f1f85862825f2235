"""One worker of `thalweg bench`: CASE SIDE THREADS -> JSON with the median seconds of a repetition."""

from __future__ import annotations

import json
import sys

from thalweg.bench.cases import seconds_of

print(json.dumps({"seconds": seconds_of(sys.argv[1], sys.argv[2], int(sys.argv[3]))}))
