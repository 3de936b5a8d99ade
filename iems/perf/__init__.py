"""The perf suite: how fast is this machine with IEMS on it, and what did a change do.

`rigs` hold one measurement a file; each starts a private server on loopback, warms up, repeats, stops. `home` makes and watches that server,
`messages` the mail, `machine` says what it ran on, `suite` runs rigs and writes lines, `_native.loadgen` is the load.
"""
