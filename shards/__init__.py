"""Data at rest and in flight: files in, batches out. Knows no model. Needs locks and signals that Windows has not."""

import sys

if sys.platform == "win32":
    raise ImportError("wsss needs Linux or macOS and does not run on Windows itself; take WSL2 (docs/install.md)")
