"""All SQL of the service. Every function takes a connection first and runs in the caller's transaction."""
