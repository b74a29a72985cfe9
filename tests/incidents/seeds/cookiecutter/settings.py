from __future__ import annotations

import os

from tests.django.databases import database

GUARDED = os.environ["SEED_SIDE"] == "guarded"

SECRET_KEY = "not-a-secret"
ALLOWED_HOSTS = ["localhost"]
ROOT_URLCONF = "tests.incidents.seeds.cookiecutter.urls"
ASGI_APPLICATION = "tests.incidents.seeds.cookiecutter.asgi.application"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "channels",
    "tests.incidents.seeds.cookiecutter",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
DATABASES = {
    "default": database(
        os.environ["SEED_DSN"],
        application_name=os.environ.get("SEED_NAME"),
        ATOMIC_REQUESTS=True,
        CONN_MAX_AGE=60,
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
}

CELERY_BROKER_URL = os.environ["SEED_REDIS"]
CELERY_TASK_IGNORE_RESULT = True

if GUARDED:
    INSTALLED_APPS += ["lifeguard.django"]
