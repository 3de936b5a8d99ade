"""The command line: iemsctl (the server and its queues) and iemsuser (accounts).

stdout is data, errors go to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 (`status` only) not running.
Run as root, a command acts as the home's user.
"""
