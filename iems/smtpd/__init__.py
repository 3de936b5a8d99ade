"""Accepts mail from the network: engine (protocol), policy and handlers (effects), worker (sockets and timers)."""
