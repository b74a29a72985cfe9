"""Views, and the two ways to work in threads of one's own."""

import threading
from collections.abc import Iterator

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

import lifeguard
from shop.models import Order

executor = lifeguard.ThreadPoolExecutor(max_workers=4)  # each job is a unit


def buy(request: HttpRequest, item: str) -> JsonResponse:
    with transaction.atomic():
        order = Order.objects.create(item=item)
    return JsonResponse({"id": order.pk})


def orders(request: HttpRequest) -> StreamingHttpResponse:
    """A stream: Django ends the request after the last line, lifeguard if Django does not."""

    def lines() -> Iterator[str]:
        for order in Order.objects.order_by("pk").iterator(chunk_size=10):
            state = "shipped" if order.shipped else "waits"
            yield f"{order.item}: {state}{', mailed' if order.mailed else ''}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def ship(pk: int) -> None:
    Order.objects.filter(pk=pk).update(shipped=True)


def ship_all(request: HttpRequest) -> JsonResponse:
    """Jobs in threads. What a job opened is closed at its end, by the rules of CONN_MAX_AGE."""
    waiting = Order.objects.filter(shipped=False).values_list("pk", flat=True)
    return JsonResponse({"shipped": len(list(executor.map(ship, waiting)))})


def mail(request: HttpRequest) -> HttpResponse:
    """A thread that nobody looks after: its connection is closed while it ends."""

    def send() -> None:
        Order.objects.filter(mailed=False).update(mailed=True)

    threading.Thread(target=send).start()
    return HttpResponse(status=202)
