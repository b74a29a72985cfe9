"""The Django site that `bench/django.py` serves: two views, one SELECT each.

The environment says how it connects, and whether lifeguard is installed: one site, so that nothing
else differs between the variants.
"""
