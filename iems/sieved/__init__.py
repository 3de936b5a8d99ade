"""ManageSieve (RFC 5804), by which mail programs edit a user's scripts: engine (protocol), handlers (effects), worker (sockets, timers, draining)."""
