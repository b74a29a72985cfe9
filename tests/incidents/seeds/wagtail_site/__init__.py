"""A Wagtail site: a home page, articles below it, and the API that a front end reads."""
