"""What processes tell each other, in bytes: see ``laraman.net.encoding``, which is below the channel because tasks use it too."""

from __future__ import annotations

from laraman.net.encoding import MAX_PAYLOAD as MAX_PAYLOAD
from laraman.net.encoding import decode as decode
from laraman.net.encoding import encode as encode
from laraman.net.encoding import encode_call as encode_call
