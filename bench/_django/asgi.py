import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bench._django.settings")
app = get_asgi_application()

if os.environ.get("BENCH_GUARDED"):
    import lifeguard

    app = lifeguard.wrap(app)
