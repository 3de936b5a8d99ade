"""The vocabulary of SMTP and LMTP: grammar, replies, trace lines. Used by smtpd and smtpc; no I/O, no clock."""
