"""Known test collections: their digests, which tell whether another copy is the same to the last character."""

from collections.abc import Mapping
from typing import NamedTuple


class Known(NamedTuple):
    """One split of a known test collection."""

    name: str
    split: str
    source: str
    """Whose figures it reproduces."""
    fingerprint: str
    """What `TestSet.fingerprint` is, the documents being in the usual order."""
    corpus_fingerprint: str
    corpus: str
    """Digest of the documents in any order."""
    queries: str
    qrels: str

    @property
    def label(self) -> str:
        """What to call it."""
        return f"{self.source} {self.name} ({self.split})"


KNOWN: tuple[Known, ...] = (
    Known(
        "cacm",
        "test",
        "Glasgow collection",
        "e6c749934a5a2e5850d91a03d047950dd3da50116c7bd0ccbfc1b3646c799b61",
        "b644e5da78208c3de38d9de352560372f946eee3f6dddd40db49871d9a5af25a",
        "443e1db753b022fd1297638acf815e0039d9a708672f7e7e3f4c939d87fd861e",
        "c2e646babb8fd9b50bbc2c25fc85476fd53351c177180761945451f592bb9097",
        "be00d4f7cc73d295279ef50b26c3edd9711ab062dd3add6fd57b71e5e00b5018",
    ),
    Known(
        "cisi",
        "test",
        "Glasgow collection",
        "65c39ca1f485aa0c4a859745e748cc5281702d8e6f8a38ce805ff7a30c6e3c5d",
        "eb6d5aaabfc4347a4581f4a95ff3464f49a261e2e5976a368d7913775dcba239",
        "4f84267f9d6ef94c9d0e88ed37b8e03b1f6037be1d0a065cbe5b3d011acae128",
        "3398668ffcb9f89bc3f19b6c6d92d0c43019ae40fe838d13f76fb3e2421ca27b",
        "524f53b7f390db92ade92a46704c5587c8d815f365968e7654a42bca0f237068",
    ),
    Known(
        "cranfield",
        "test",
        "Glasgow collection",
        "e09a062d9be7331d86cd06b9f43146e1ae776c4ef89846209d69734eccecdea8",
        "eefcd95b73fb524cc66e1e52868504a50c6171913fc22590c3aef990a3b536e9",
        "1918f28a8ebde0bc723b7d5d874710edfe14ffbe2fbaf18cd08cec1a46a6a99e",
        "ad323cc9c8bac76fc8003850433ca02faa264cabb0c21ef9cd70e80743035903",
        "809a83d9231b58653b7484bb2bd203b7903976ab1a6d468575968a71832b9f5c",
    ),
    Known(
        "npl",
        "test",
        "Glasgow collection",
        "ab1f56922200d45c8fe72a4192e9703e986b45f1e18ebdcc1a3e56a8aca8c39b",
        "4fec38ebdaf8b25b989a280ec9912e0e81551deb585e12a524442724a573e9a8",
        "900e82c1c23276e1840ce148aa80eb54810c9263c27f39f2f84141aa6c23f695",
        "f1ac5eba73b35ca2c2db5090c0dbefad152f024088dae226b8f5eb4aa124d6bf",
        "81515171f5905727bdfe0b5a8572c82b0e1f304f382fc42590cbe44d7767bb41",
    ),
    Known(
        "scifact",
        "test",
        "BEIR",
        "e3bf55c739650f469edb37148c752136820f3e5214f9371629a03b92a295511a",
        "5c14a2fa64cd6b87f5442f09c19e4ef2256049eb736d26f4a55e35d7aa7ba451",
        "4ae9addc591e67766613587dd30793f681acca2193b47ecb7d09da4a7d7a5573",
        "70f404eb92cb408c62686add57d2012844127ea23986f7a21e609e5a2b34a7de",
        "761f6ed18a576ca11917af57e4f9dbe210cfa0b3452ec0652d3de520862ba8e4",
    ),
    Known(
        "scifact",
        "train",
        "BEIR",
        "1935063e0fff0fcc36de6762602088c3beb71743d4f7085edfd58fce371bc8a1",
        "5c14a2fa64cd6b87f5442f09c19e4ef2256049eb736d26f4a55e35d7aa7ba451",
        "4ae9addc591e67766613587dd30793f681acca2193b47ecb7d09da4a7d7a5573",
        "bf5003b1067a516fb9abfd88b5dfa3e6012cf6f56e0049fe9c9a293d2ba19b1f",
        "ec293f55a2a3f57089833ff4fbe362c95beb19a4c3befb149e358a66126d4c1d",
    ),
)


def identical_known(contents: Mapping[str, str]) -> Known | None:
    """The known test collection with these digests of corpus, queries and qrels."""
    return next((one for one in KNOWN if contents == {name: getattr(one, name) for name in contents}), None)


def differing_known(name: str, split: str) -> Known | None:
    """The known test collection of this name and split."""
    return next((one for one in KNOWN if (one.name, one.split) == (name.lower(), split)), None)
