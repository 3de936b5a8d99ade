"""POP3 (RFC 1939) on the store: engine (protocol), handlers (effects), worker (sockets, timers, draining)."""
