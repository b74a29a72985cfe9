from __future__ import annotations

import os

from tests.django.databases import database

GUARDED = os.environ["SEED_SIDE"] == "guarded"

SECRET_KEY = "not-a-secret"
ALLOWED_HOSTS = ["localhost"]
ROOT_URLCONF = "tests.incidents.seeds.wagtail_site.urls"
WSGI_APPLICATION = "tests.incidents.seeds.wagtail_site.wsgi.application"
INSTALLED_APPS = [
    "tests.incidents.seeds.wagtail_site",
    "wagtail.contrib.redirects",
    "wagtail.users",
    "wagtail.documents",
    "wagtail.images",
    "wagtail.search",
    "wagtail.admin",
    "wagtail",
    "wagtail.api.v2",
    "modelcluster",
    "taggit",
    "rest_framework",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.postgres",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "wagtail.contrib.redirects.middleware.RedirectMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.contrib.auth.context_processors.auth"]},
    }
]
DATABASES = {
    "default": database(os.environ["SEED_DSN"], CONN_MAX_AGE=int(os.environ["SEED_CONN_MAX_AGE"]))
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
USE_TZ = True
TIME_ZONE = "UTC"
WAGTAIL_SITE_NAME = "Seed"
WAGTAILADMIN_BASE_URL = "http://localhost"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
}

if GUARDED:
    INSTALLED_APPS += ["lifeguard.django"]


class NoMigrations:
    """The tables as the models are: two hundred migrations would take longer than the test."""

    def __contains__(self, app: str) -> bool:
        return True

    def __getitem__(self, app: str) -> None:
        return None


MIGRATION_MODULES = NoMigrations()
