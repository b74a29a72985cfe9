"""What lifeguard costs, as ratios to things people know, measured side by side in one run.

Nanoseconds differ from machine to machine; "half of what svcs adds" does not. ``python -m bench``
prints the table, ``docs/bench.md`` says how it is measured and why.
"""
