"""Settings of the message board. PostgreSQL is the one of LIFEGUARD_DSN."""

import os

from psycopg.conninfo import conninfo_to_dict

login = conninfo_to_dict(os.environ["LIFEGUARD_DSN"])

SECRET_KEY = os.environ.get("SECRET_KEY") or os.urandom(16).hex()
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "board.urls"
INSTALLED_APPS = ["board"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": login.pop("dbname"),
        "OPTIONS": login,
        "CONN_MAX_AGE": 60,  # works under ASGI, too: lanes are threads that stay
    }
}
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

INSTALLED_APPS += ["lifeguard.django"]
LIFEGUARD = {"LANES": 4}  # threads, and so connections, per worker process
