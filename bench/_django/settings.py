import json
import os

GUARDED = os.environ.get("BENCH_GUARDED")

SECRET_KEY = os.urandom(16).hex()
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "bench._django.urls"
INSTALLED_APPS = ["bench._django"]
USE_TZ = True
DATABASES = {
    "default": {"ENGINE": "django.db.backends.postgresql", **json.loads(os.environ["BENCH_DB"])}
}

if GUARDED:
    INSTALLED_APPS += ["lifeguard.django"]
    LIFEGUARD = {"LANES": int(GUARDED)}
