"""What the service does, one verb per file: transactions are opened here, and the vendor is never called inside one."""
