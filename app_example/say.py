"""Say something in the chat, from a program that has no event loop and knows nothing of the server but a path.

python -m app_example.say huila "the oven is free"
"""

from __future__ import annotations

import sys

from app_example import DESK
from laraman.ipc_client import CallError, call


def main() -> int:
    if len(sys.argv) != 3:
        print('usage: python -m app_example.say ROOM "TEXT"', file=sys.stderr)
        return 2
    try:
        reply = call(DESK, {"op": "say", "room": sys.argv[1], "text": sys.argv[2]}, timeout=2)
    except CallError as exc:
        print(exc, file=sys.stderr)
        return 1
    if reply["res"] != "ok":
        print(reply["msg"], file=sys.stderr)
        return 1
    print(f"said to {reply['people']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
