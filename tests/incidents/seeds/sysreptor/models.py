from __future__ import annotations

from django.db import models
from django.utils import timezone


class Note(models.Model):
    text = models.TextField()


class PeriodicTask(models.Model):
    """Housekeeping that each health check looks after."""

    name = models.CharField(max_length=100, unique=True)
    started = models.DateTimeField(default=timezone.now)
    completed = models.DateTimeField(null=True)
