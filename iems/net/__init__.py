"""The only sockets of IEMS: streams, listeners, TLS, the resolver."""
