"""The master: binds, forks, reaps, counts. It never reads a byte from a peer.

`supervisor` runs the loop, `pool` decides (pure), `child` is what a worker runs in, `board` is the shared status,
`notify` talks to systemd.
"""
