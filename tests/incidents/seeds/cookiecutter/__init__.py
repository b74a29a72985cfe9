"""What Cookiecutter Django generates, in miniature: ASGI with websockets, Celery on redis.

Its settings are the generated ones where they are about the database: CONN_MAX_AGE=60 and
ATOMIC_REQUESTS. Channels came with the upgrade that the report is about.
"""
