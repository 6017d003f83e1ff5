"""The planning service: events in, plans out, telemetry in Redis."""
