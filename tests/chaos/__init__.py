"""`make chaos`: breaks things under load, and checks that nothing acknowledged is lost and that the speed comes back.

Repeatable from a seed, bounded in time and count, on loopback alone. It ends only processes that it started.
"""
