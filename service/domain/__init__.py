"""The rules: values in, values out. No input or output, clock, randomness or logging in here."""
