"""A model without a table of its own: PostgreSQL's list of databases."""

from __future__ import annotations

from django.db import models


class Database(models.Model):
    datname = models.CharField(max_length=64, primary_key=True)

    class Meta:
        managed = False
        db_table = "pg_database"
