"""The example: a small coffee shop whose prices come over a Link from another process, and whose customers chat through the gateway."""

import os
import tempfile

#: Where the ticker listens and where its Links dial.
TICKER = f"frame://127.0.0.1:{os.environ.get('TICKER_PORT', '9100')}"
#: The socket at which other programs ask the desk for something.
DESK = os.environ.get("DESK") or os.path.join(tempfile.gettempdir(), f"laraman-desk-{os.geteuid()}.sock")
