from asgiref.sync import sync_to_async
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path


def select() -> bytes:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return b"%d" % cursor.fetchone()[0]


def answer(body: bytes) -> HttpResponse:
    # CommonMiddleware would set the length. Without either, every answer would be chunked.
    return HttpResponse(body, headers={"Content-Length": str(len(body))})


def sync_view(request: HttpRequest) -> HttpResponse:
    return answer(select())


async def async_view(request: HttpRequest) -> HttpResponse:
    return answer(await sync_to_async(select)())  # as `aget()` and all other a-methods do


urlpatterns = [path("sync", sync_view), path("async", async_view)]
