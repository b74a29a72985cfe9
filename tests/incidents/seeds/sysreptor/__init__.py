"""SysReptor's API in miniature: long-polling tabs, and a health check that starts the housekeeping.

As of January 2025: Django under gunicorn with uvicorn workers, on Django's own connection pool.
"""
