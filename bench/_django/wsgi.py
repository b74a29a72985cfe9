import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bench._django.settings")
app = get_wsgi_application()

if os.environ.get("BENCH_GUARDED"):
    import lifeguard

    app = lifeguard.wrap(app)
