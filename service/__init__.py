"""Kahuna Sync: keeps a company's suppression list and Kahuna's in agreement."""

__version__ = "0.1.0"
