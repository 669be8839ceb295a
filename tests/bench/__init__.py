"""`make bench`: what the service does in a second, beside bare Starlette and the bare SQL in the same run, as ratios.

Machines differ and are noisy, so only ratios within one run mean anything. Everything shares this machine: the service,
PostgreSQL with fsync on, and the load, which is bounded in connections, requests and seconds.
"""
