"""Role `api`: a local socket by which programs of others hand mail in and take mail out; `client.py` is its Python client."""
