"""Profiles: what is special about a dataset, by its name.

Sources: self-matches, MTEB's `ignore_identical_ids` and BEIR's issue 91; splits and measures, the BEIR paper
(Thakur et al., NeurIPS 2021, table 1) and MTEB's task metadata.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

_MSMARCO = (
    "MS MARCO: published figures are of the split dev (6,980 queries; nDCG@10 in BEIR and MTEB, MRR@10 elsewhere); "
    "BEIR's split test holds the 43 queries of TREC-DL 2019, where the same system scores twice as high."
)
_TOUCHE = (
    "Touché: its versions cannot be compared (nDCG@10 of BM25 about 0.60 in v1, 0.35 in v2 and 0.66 in v3); "
    "BEIR's download is v2, MTEB has v2 and v3."
)
_CQADUPSTACK = (
    "CQADupstack: one of 12 subforums; published figures are the unweighted mean of all 12, which counts as one set."
)
_TREC_COVID = "TREC-COVID: the BEIR paper's recall@100 is capped at the number of relevant documents."

CQADUPSTACK = (
    "android",
    "english",
    "gaming",
    "gis",
    "mathematica",
    "physics",
    "programmers",
    "stats",
    "tex",
    "unix",
    "webmasters",
    "wordpress",
)
"""The subforums of CQADupstack."""


@dataclass(frozen=True)
class Profile:
    """What is special about a dataset."""

    drop_self_matches: bool = False
    """Whether a hit whose id is the query's id is taken out before measuring: right where the queries are
    documents of the corpus (ArguAna, Quora), wrong where both merely count from 1 (Cranfield, CISI)."""
    split: str = "test"
    """The split that is measured if none is asked for."""
    measure: str = "nDCG@10"
    """The measure that published figures give."""
    title_separator: str | None = " "
    """What stands between title and text; None: titles are left out."""
    note: str = ""
    """What a reader of the results should know of this dataset."""
    overruled: tuple[str, ...] = ()
    """Which of these were set by hand, against the dataset's own rule."""


_RULES = {
    "arguana": Profile(drop_self_matches=True),
    "quora": Profile(drop_self_matches=True),
    "fiqa": Profile(drop_self_matches=True),
    "fever": Profile(drop_self_matches=True),
    "msmarco": Profile(drop_self_matches=True, split="dev", note=_MSMARCO),
    "trec-dl": Profile(drop_self_matches=True),
    "cqadupstack": Profile(note=_CQADUPSTACK),
    "webis-touche2020": Profile(note=_TOUCHE),
    "trec-covid": Profile(note=_TREC_COVID),
    **{
        name: Profile()
        for name in ("climate-fever", "dbpedia-entity", "hotpotqa", "nfcorpus", "nq", "scidocs", "scifact")
    },
}

_ALIASES = {
    "climatefever": "climate-fever",
    "dbpedia": "dbpedia-entity",
    "fiqa2018": "fiqa",
    "msmarco-passage": "msmarco",
    "quoraretrieval": "quora",
    "touche2020": "webis-touche2020",
    "touche2020retrieval": "webis-touche2020",
    "trec-covid-v2": "trec-covid",
    "treccovid": "trec-covid",
}
"""What MTEB, the hub and ir_datasets call them."""


def find_profile(name: str) -> Profile | None:
    """The rules of a dataset by its name, as BEIR, MTEB, the hub or ir_datasets write it; None if it is unknown."""
    plain = name.lower().replace("_", "-")
    parts = plain.split("/")
    if any(part.startswith("trec-dl") for part in parts):
        return _RULES["trec-dl"]
    if parts[0].startswith("cqadupstack"):
        return _RULES["cqadupstack"]
    short = re.sub(r"(\.v\d+|hardnegatives|-hard-negatives)+$", "", parts[0])
    return _RULES.get(_ALIASES.get(short, short))


def default_split(name: str) -> str:
    """The split that is measured if none is asked for."""
    return (find_profile(name) or Profile()).split


def overrule(profile: Profile, by_hand: Mapping[str, object]) -> Profile:
    """Set fields of a profile by hand, and record those that differ from its own rule."""
    chosen = {name: value for name, value in by_hand.items() if value != getattr(profile, name)}
    return replace(profile, **chosen, overruled=(*profile.overruled, *chosen))  # type: ignore[arg-type]
