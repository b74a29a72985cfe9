"""Ways to run code in a thread, and what each of them leaves behind on a real PostgreSQL."""
