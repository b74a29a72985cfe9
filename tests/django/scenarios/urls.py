from __future__ import annotations

from django.urls import path

from tests.django.scenarios import views

urlpatterns = [
    path("plain", views.plain),
    path("aplain", views.aplain),
    path("meet", views.meet),
    path("waits", views.waits),
    path("awaits", views.awaits),
    path("to-thread", views.to_thread),
    path("module-executor", views.module_executor),
    path("raw-thread", views.raw_thread),
    path("stream", views.stream),
    path("astream", views.astream),
    path("astream-raises", views.astream_raises),
    path("events", views.events),
    path("cursor", views.cursor),
    path("transactions", views.transactions),
    path("raises", views.raises),
    path("araises", views.araises),
    path("middleware-raises", views.plain),
    path("async-middleware-raises", views.plain),
    path("upload", views.upload),
    path("outer", views.plain),
    path("cancelled", views.cancelled),
    path("background", views.background),
]
