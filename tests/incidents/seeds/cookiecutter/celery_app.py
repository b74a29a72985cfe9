from __future__ import annotations

from celery import Celery

app = Celery("cookiecutter")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["tests.incidents.seeds.cookiecutter"])
