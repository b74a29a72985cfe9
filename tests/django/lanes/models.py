"""A model without migrations: its table belongs to the test module."""

from __future__ import annotations

from django.db import models


class Row(models.Model):
    value = models.TextField()

    class Meta:
        app_label = "lanes"
        managed = False
        db_table = "lanes_rows"
