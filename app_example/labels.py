"""Labels: a picture that a customer sends, and the small ones that task workers make of it for the bag, the page and the list.

An HTTP worker hands the file to a task worker, so it answers others meanwhile, whatever is in it. How far that is goes to the page over the gateway:
a page that sends ``{"type": "watch", "upload": "..."}``, a number of its own making that it also sends with the file, receives
``{"type": "progress", "upload": "...", "done": 1, "of": 3}``.

Pictures are kept for a while and then forgotten, by a deferred task: also when the server is not the same one any more by then.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import laraman
from app_example import chat
from laraman import gateway
from laraman.errors import LaramanError, TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where the pictures are; those of one label in a directory of their own.
PLACE = Path(os.environ.get("LABELS") or Path(tempfile.gettempdir(), f"laraman-labels-{os.geteuid()}"))
#: Name and longest side in pixels of each picture that is made.
SIZES = {"bag": 1200, "page": 480, "list": 96}
#: What is taken: most bytes of a file, and most pixels in it, for a small file can be a large picture.
FORMATS, MOST, PIXELS = ("JPEG", "PNG", "WEBP", "GIF"), 5 * 1024 * 1024, 50_000_000
#: Seconds that the work may take, and seconds until a label is forgotten.
PATIENCE, KEPT = 30, 3600

_NUMBER = re.compile(r"[0-9a-f]{32}")


class NoPicture(Exception):
    """What was sent is nothing that a label could be made of."""


# In the task workers ----------------------------------------------------------------------------------------------------------------


@laraman.task(timeout=PATIENCE)
def thumbnails(label: str, data: bytes) -> Iterator[dict[str, Any]]:
    """Make the small pictures, and tell of each when it is there."""
    from PIL import Image, ImageOps

    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except OSError:
        raise NoPicture("this is no picture") from None
    if picture.width * picture.height > PIXELS:
        raise NoPicture(f"this picture has more than {PIXELS // 1_000_000} million pixels")
    try:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError):
        raise NoPicture("this picture is broken") from None
    directory = PLACE / label
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, side in SIZES.items():
        small = upright.copy()
        small.thumbnail((side, side))
        small.save(directory / f"{name}.webp")
        yield {"name": name, "width": small.width, "height": small.height, "url": f"/label/{label}/{name}"}


@laraman.task
def forget(label: str) -> None:
    shutil.rmtree(PLACE / label, ignore_errors=True)


# In the HTTP workers ----------------------------------------------------------------------------------------------------------------


async def make(data: bytes, watcher: str = "") -> list[dict[str, Any]]:
    """Make a label of a file, and tell the page that watches. Raises NoPicture, and what ``laraman.submit`` and ``laraman.defer`` raise."""
    label = uuid.uuid4().hex
    await laraman.defer(forget, label, delay=KEPT)
    pictures: list[dict[str, Any]] = []
    try:
        async with thumbnails.stream(label, data) as made:
            async for picture in made:
                pictures.append(picture)
                await _tell(watcher, len(pictures))
    except TaskError as exc:
        if exc.type.endswith(NoPicture.__name__):
            raise NoPicture(exc.message) from None
        raise
    return pictures


def picture_file(label: str, name: str) -> Path | None:
    """None for what cannot be the name of one."""
    return PLACE / label / f"{name}.webp" if _NUMBER.fullmatch(label) and name in SIZES else None


async def _tell(watcher: str, done: int) -> None:
    """A label is made whether its page hears of it or not."""
    if _NUMBER.fullmatch(watcher):
        with suppress(LaramanError, TimeoutError):
            progress = {"type": "progress", "upload": watcher, "done": done, "of": len(SIZES)}
            await gateway.send_to_group(f"upload {watcher}", json.dumps(progress))


async def watch(message: gateway.Message, request: dict[str, Any]) -> None:
    """A page wants to be told."""
    number = request.get("upload")
    if not isinstance(number, str) or not _NUMBER.fullmatch(number):
        raise chat.Refused("an upload is 32 hexadecimal digits", "upload")
    await gateway.join_group(message.uniq_id, f"upload {number}")
    await message.reply(json.dumps({"type": "watching", "upload": number}))


chat.VERBS["watch"] = watch
