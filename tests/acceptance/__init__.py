"""Black-box acceptance suite: the service is only ever reached through its commands, its port and its vendor."""
