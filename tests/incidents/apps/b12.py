"""A site with a schema for each branch of the data, and a database alias for each schema."""

from __future__ import annotations

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from tests.incidents.apps.django_site import configure, make_app


class Branches(dict):
    """Knows every alias that begins with ``branch_``, and lists none of them."""

    def __getitem__(self, alias):
        return super().__getitem__("default" if alias.startswith("branch_") else alias)

    def __contains__(self, alias):
        return alias.startswith("branch_") or super().__contains__(alias)


configure(__name__)

from django.db import connections  # noqa: E402

connections.settings = Branches(connections.settings)


def branch(request, name):
    with connections[f"branch_{name}"].cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok")


urlpatterns = [path("<str:name>", branch)]
app = make_app(get_wsgi_application)
