"""Who vouches for a message: SPF (RFC 7208), DKIM (RFC 6376, 8463), DMARC (RFC 9989), ARC (RFC 8617) and the field that
tells of them (RFC 8601).

Evaluators only: octets and a resolver come in, results go out. Who runs them, and what becomes of a message, is decided in
`iems/preprocessor/modules`.
"""
