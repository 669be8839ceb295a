"""The console in a real browser: every page, light and dark, wide and narrow, with and without scripts."""
