"""The endpoints. The line that leaks has a comment; which name it is found under says ``LEAKS``."""

from __future__ import annotations

import asyncio
import decimal
import functools
import itertools
import locale
import logging
import os
import random
import signal
import sys
import textwrap
import time
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from tests.check import framework
from tests.check.leaky import services
from tests.check.leaky.services import basket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LAST_USER: str | None = None
VISITS: list[str] = []
NUMBERS = itertools.count()
HOUR = 3600


class Report:
    owner = ""


class Row:
    def __init__(self, user: str) -> None:
        self.user = user

    def expire(self) -> None:
        pass


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    services.settings.set({"owner": "nobody"})
    services.ending = asyncio.get_running_loop().create_future()
    yield
    services.ending.set_result(None)
    await asyncio.sleep(0)
    services.engine.dispose()


app = FastAPI(lifespan=lifespan)


def user_of(request: Request) -> str:
    return request.headers.get("x-user", "nobody")


@app.get("/leaks/1")
async def global_rebound(request: Request) -> None:
    global LAST_USER
    LAST_USER = user_of(request)  # leak 1


@app.get("/leaks/2")
async def global_grows(request: Request) -> None:
    VISITS.append(user_of(request))  # leak 2


@app.get("/leaks/3")
async def class_attribute(request: Request) -> None:
    Report.owner = user_of(request)  # leak 3


@app.get("/leaks/4")
async def singleton(request: Request) -> None:
    basket.belong(user_of(request))


def add(user: str, into: list[str] = []) -> list[str]:  # noqa: B006
    into.append(user)  # leak 5
    return into


@app.get("/leaks/5")
async def default_argument(request: Request) -> None:
    add(user_of(request))


def tallying() -> Callable[[str], None]:
    visitors: tuple[str, ...] = ()

    def tally(user: str) -> None:
        nonlocal visitors
        visitors = (user,)  # leak 6

    return tally


tally = tallying()


@app.get("/leaks/6")
def closure(request: Request) -> None:
    tally(user_of(request))


@functools.lru_cache(maxsize=None)  # noqa: UP033
def profile(user: str, at: int) -> str:
    return f"{user} at {at}"


@app.get("/leaks/7")
async def endless_cache(request: Request) -> str:
    return profile(user_of(request), time.monotonic_ns())  # leak 7


@app.get("/leaks/8")
async def application_state(request: Request) -> None:
    request.app.state.user = user_of(request)  # leak 8


@app.get("/leaks/9")
async def context_variable(request: Request) -> None:
    services.tenant.set(user_of(request))  # leak 9


@app.get("/leaks/10")
async def mutable_in_context(request: Request) -> None:
    services.settings.get()["owner"] = user_of(request)  # leak 10


@app.get("/leaks/11")
def thread_local(request: Request) -> None:
    services.per_thread.user = user_of(request)  # leak 11


@app.get("/leaks/12")
def framework_language(request: Request) -> None:
    framework.activate(user_of(request))  # leak 12


@app.get("/leaks/13")
async def connection_never_returned(request: Request) -> None:
    services.at_the_end(services.engine.connect().close)  # leak 13


@app.get("/leaks/14")
async def environment(request: Request) -> None:
    os.environ["LAST_USER"] = user_of(request)  # leak 14


@app.get("/leaks/15")
async def directory(request: Request) -> None:
    os.chdir("/")  # leak 15


@app.get("/leaks/16")
async def umask(request: Request) -> None:
    os.umask(0o077)  # leak 16


@app.get("/leaks/17")
async def language(request: Request) -> None:
    locale.setlocale(locale.LC_TIME, "C.UTF-8")  # leak 17


@app.get("/leaks/18")
async def timezone(request: Request) -> None:
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()  # leak 18


@app.get("/leaks/19")
async def warnings_filter(request: Request) -> None:
    warnings.simplefilter("ignore", ResourceWarning)  # leak 19


@app.get("/leaks/20")
async def logging_level(request: Request) -> None:
    logging.getLogger().setLevel(logging.DEBUG)  # leak 20


@app.get("/leaks/21")
async def random_state(request: Request) -> None:
    random.seed(user_of(request))  # leak 21


@app.get("/leaks/22")
async def recursion_limit(request: Request) -> None:
    sys.setrecursionlimit(sys.getrecursionlimit() + 1)  # leak 22


@app.get("/leaks/23")
async def signal_handler(request: Request) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # leak 23


@app.get("/leaks/24")
async def module_path(request: Request) -> None:
    sys.path.append(f"/srv/{user_of(request)}")  # leak 24


@app.get("/leaks/25")
async def profiling(request: Request) -> None:
    sys.setprofile(lambda *_: None)  # leak 25


async def poll() -> None:
    await asyncio.sleep(HOUR)


@app.get("/leaks/26")
async def task_that_stays(request: Request) -> None:
    asyncio.create_task(poll())  # leak 26  # noqa: RUF006


@app.get("/leaks/27")
async def file_left_open(request: Request) -> None:
    services.at_the_end(open("/dev/null").close)  # leak 27  # noqa: ASYNC230, SIM115


@app.get("/leaks/28")
async def decimal_default(request: Request) -> None:
    decimal.DefaultContext.prec = 5  # leak 28


@app.get("/leaks/29")
async def memory(request: Request) -> None:
    services.at_the_end(Row(user_of(request)).expire)  # leak 29


@app.get("/leaks/30")
async def monkeypatch(request: Request) -> None:
    original = textwrap.fill
    textwrap.fill = lambda *args, **kwargs: original(*args, **kwargs)  # leak 30
