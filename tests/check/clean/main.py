from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
import weakref
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from fastapi.templating import Jinja2Templates
from starlette.responses import Response  # noqa: TC002

from tests.check.clean.config import Settings, price, settings
from tests.check.clean.models import Order, shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

logger = logging.getLogger(__name__)
templates = Jinja2Templates(Path(__file__).parent / "templates")
router = APIRouter(prefix="/orders")
user: ContextVar[str] = ContextVar("user", default="nobody")
lock = threading.Lock()
living: weakref.WeakSet[Session] = weakref.WeakSet()
_client: Client | None = None


class Session:
    """Of one request."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.itself = self  # only the collector ends this
        living.add(self)


class Client:
    """Of somebody else's service; there is one, when it is needed."""

    async def ask(self) -> float:
        return random.random()


def client() -> Client:
    global _client
    if _client is None:
        _client = Client()
    return _client


def session(request: Request) -> Session:
    name = request.headers.get("x-user", "nobody")
    user.set(name)
    return Session(name)


async def heartbeat() -> None:
    while True:
        await asyncio.sleep(0.001)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
    app.state.shop = shop
    task = asyncio.create_task(heartbeat())
    yield {"client": client}
    task.cancel()


@router.get("/")
async def orders(request: Request, mine: Annotated[Session, Depends(session)], config: Annotated[Settings, Depends(settings)]) -> Response:
    logger.info("orders of %s", mine.name)
    return templates.TemplateResponse(request, "orders.html", {"orders": list(shop.orders.values())[: config.page]})


@router.get("/{item}", response_model=Order)
def order(item: str, mine: Annotated[Session, Depends(session)]) -> Order:
    import colorsys  # at its first use

    with lock:
        assert colorsys
        return Order(item=re.sub(r"\W", "", item), count=price(item) + next(shop.numbers) * 0)


@router.get("/{item}/mail")
async def mail(item: str, background: BackgroundTasks) -> float:
    background.add_task(logger.info, "mail about %s", item)
    background.add_task(asyncio.sleep, 0)
    with open(__file__, "rb") as file:  # noqa: ASYNC230
        file.read(1)
    return await client().ask() + await asyncio.to_thread(price, item)


app = FastAPI(title="Orders", lifespan=lifespan)
app.include_router(router)
