from __future__ import annotations

from wagtail.api import APIField
from wagtail.fields import RichTextField
from wagtail.models import Page


class Article(Page):
    body = RichTextField()
    template = "article.html"
    api_fields = [APIField("body")]
