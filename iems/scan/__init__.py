"""Clients of the programs that judge content: clamd, ICAP servers, command-line virus scanners, spamd, rspamd, milters. Each may run on another machine.

Every client streams, has a deadline and a bound on how many look at once, and stops asking for a while when nobody answers (`iems/net/breaker.py`).
"""
