from __future__ import annotations

from celery import shared_task

from .models import Order


@shared_task
def send(order: int) -> None:
    Order.objects.filter(pk=order).update(sent=True)
