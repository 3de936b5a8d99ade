"""What a fake authenticator of the protocol tests has beside `check`: passwords only, unless it is given an offer."""

from iems.sasl import Offer
from iems.sasl.scram import made_up


class FakeLogins:
    offer = Offer()

    def keys(self, login, scheme, peer_ip):
        return made_up(b"", login, 4096)

    async def proven(self, login, keys, scheme, peer_ip):
        return None

    async def token(self, login, token, peer_ip):
        return None

    async def failed(self, login, peer_ip):
        pass
