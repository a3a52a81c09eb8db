"""Django in one file, with both of its entrances: ``application`` is ASGI, ``get_wsgi_application`` makes the one of WSGI."""

import asyncio
import threading

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application as get_wsgi_application
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path, reverse
from django.views.decorators.csrf import csrf_exempt

settings.configure(
    SECRET_KEY="not a secret",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "django.db"}},
    INSTALLED_APPS=["django.contrib.sessions"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware", "django.middleware.common.CommonMiddleware"],
)
django.setup()


def note(text):
    with open("log.txt", "a") as log:
        log.write(f"{text}\n")


def index(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse(
        {
            "visits": request.session["visits"],
            "thread": threading.current_thread() is not threading.main_thread(),
            "url": request.build_absolute_uri(reverse(later, args=["x"])),
        }
    )


async def later(request, word):
    await asyncio.sleep(0.01)
    return JsonResponse({"word": word, "query": request.GET.dict()})


@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    return JsonResponse({"name": file.name, "size": file.size, "title": request.POST["title"]})


def database(request):
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT 6 * 7")
        return JsonResponse({"answer": cursor.fetchone()[0]})


async def lines():
    for number in range(3):
        yield f"line {number}\n"


def stream(request):
    return StreamingHttpResponse(lines() if hasattr(request, "scope") else (f"line {number}\n" for number in range(3)))


async def forever(request):
    async def ticks():
        try:
            while True:
                yield "tick\n"
                await asyncio.sleep(0.02)
        finally:
            note("stream over")

    return StreamingHttpResponse(ticks())


def broken(request):
    raise RuntimeError("a bug of the shop")


urlpatterns = [
    path("", index),
    path("later/<word>/", later),
    path("upload/", upload),
    path("database/", database),
    path("stream/", stream),
    path("forever/", forever),
    path("broken/", broken),
]
application = get_asgi_application()
