"""A few pages, as an editor makes them."""

from __future__ import annotations

from django.core.management.base import BaseCommand
from wagtail.models import Locale, Page, Site

from tests.incidents.seeds.wagtail_site.models import Article


class Command(BaseCommand):
    def handle(self, *args: object, **options: object) -> None:
        Locale.objects.create(language_code="en")
        root = Page.add_root(title="Root", slug="root")
        home = root.add_child(instance=Article(title="Home", slug="home", body="<p>Hello</p>"))
        for n in range(12):
            home.add_child(instance=Article(title=f"Article {n}", body=f"<p>{n}</p>"))
        Site.objects.create(hostname="localhost", root_page=home, is_default_site=True)
