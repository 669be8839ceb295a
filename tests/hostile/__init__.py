"""`make fuzz`: hostile bodies without end, made by knowing the format, for the parser and for the webhooks.

Repeatable from a seed, bounded in number, on a PostgreSQL of its own. Every body is judged by properties and by the
standard decoder, never by a copy of the code that is tried.
"""
