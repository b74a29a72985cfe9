"""Settings of the shop. PostgreSQL is the one of LIFEGUARD_DSN."""

import os

from psycopg.conninfo import conninfo_to_dict

login = conninfo_to_dict(os.environ["LIFEGUARD_DSN"])

SECRET_KEY = os.environ.get("SECRET_KEY") or os.urandom(16).hex()
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
INSTALLED_APPS = ["shop"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": login.pop("dbname"),
        "OPTIONS": login,
        "CONN_MAX_AGE": 60,
    }
}

INSTALLED_APPS += ["lifeguard.django"]
