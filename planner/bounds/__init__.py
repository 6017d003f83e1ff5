"""Requests per second that no plan exceeds, and plans out of the same program."""
