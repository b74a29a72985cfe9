"""The shop as a WSGI application.

Start it with ``python examples/run.py django_wsgi``, or on a PostgreSQL of your own::

    export LIFEGUARD_DSN=postgresql://...
    cd examples/django_wsgi
    python manage.py migrate
    gunicorn -k gthread --threads 4 shop.wsgi:application
"""

import os

from django.core.wsgi import get_wsgi_application

import lifeguard

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = get_wsgi_application()
application = lifeguard.wrap(application)
