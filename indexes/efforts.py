"""How far an approximate search goes, and what that is called in FAISS."""

from typing import Any, NamedTuple

from indexes.errors import InputError

EF = 128
AFTER_REFINEMENT = 2
"""How many rows are scored again for each hit, of those that FAISS has refined."""
_REFINED = 8
_EFS = (10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
_NPROBES = (1, 2, 3, 4, 6, 8, *_EFS[2:], 2048)
_FEW_CANDIDATES, _MANY_CANDIDATES = (1, 2, 4), (2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Effort(NamedTuple):
    """How far a search goes in an approximate index: farther finds more, and takes longer. None: as by default."""

    ef: int | None = None
    """Of graphs (HNSW): how many of the nearest are kept in mind on the way; 128 by default."""
    nprobe: int | None = None
    """Of inverted lists (IVF): how many are gone through; a sixteenth, at least 16, by default."""
    candidates: int | None = None
    """How many rows are scored again from the raw vectors for each hit; 4 by default, 1 where FAISS has them whole.

    Where FAISS refines what it finds (`…,Refine(SQ8)`): how many it refines, 8 by default; twice as many as there are
    hits are then scored again from the raw vectors. 0: none is, and scores are FAISS' own, which are off in the last
    digits, or in the first where vectors are compressed; hits come a little sooner, and no raw vector is read. (But
    documents of several passages are always scored by all of them.)
    """

    def check(self) -> None:
        """Refuse what is no effort.

        Raises:
            InputError: A number is less than 1; candidates: than 0.
        """
        for name, value, least in zip(self._fields, self, (1, 1, 0), strict=True):
            if value is not None and value < least:
                raise InputError(f"effort {name} is {value}; expected at least {least}")

    def over(self, other: "Effort") -> "Effort":
        """This one, and where it says nothing, the other."""
        if other == DEFAULT:
            return self
        return Effort(*(theirs if mine is None else mine for mine, theirs in zip(self, other, strict=True)))


DEFAULT = Effort()


def usual_nprobe(lists: int) -> int:
    """How many of so many lists are gone through by default."""
    return min(lists, max(16, lists // 16))


def _inside(faiss: Any, index: Any) -> Any:
    """The index that another is wrapped around; None: around none."""
    if isinstance(index, faiss.IndexPreTransform):
        return index.index
    return index.base_index if isinstance(index, faiss.IndexRefine) else None


def widen(faiss: Any, index: Any) -> None:
    """Search wider than FAISS' defaults (1 list, 16 neighbours), which lose most of the answers."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = EF
    elif isinstance(index, faiss.IndexIVF):
        index.nprobe = usual_nprobe(index.nlist)
    elif (inner := _inside(faiss, index)) is not None:
        widen(faiss, inner)
    if isinstance(index, faiss.IndexRefine):
        index.k_factor = _k_factor(DEFAULT)


def _k_factor(effort: Effort) -> float:
    return max(1.0, (effort.candidates or _REFINED) / AFTER_REFINEMENT)


def search_parameters(faiss: Any, index: Any, effort: Effort) -> Any:
    """FAISS' search parameters, through all that is wrapped around a graph or lists; None where it has none.

    Fresh objects for each search: FAISS changes those it is given, so that threads must not share them.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=effort.ef or EF)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=min(index.nlist, effort.nprobe or usual_nprobe(index.nlist)))
    inside = _inside(faiss, index)
    inner = None if inside is None else search_parameters(faiss, inside, effort)
    if isinstance(index, faiss.IndexRefine):
        given = {} if inner is None else {"base_index_params": inner}
        return faiss.IndexRefineSearchParameters(k_factor=_k_factor(effort), **given)
    if inner is None:
        return None
    return faiss.SearchParametersPreTransform(index_params=inner)


def ladder(faiss: Any, index: Any, *, compressed: bool) -> list[list[Effort]]:
    """Efforts to try, from the least on: of each depth (ef or nprobe) a list, of more and more candidates.

    Args:
        faiss: The module.
        index: FAISS' index.
        compressed: Whether candidates are scored again from raw vectors, so that more of them find more.
    """
    name, depths = _depths(faiss, index)
    graph = name == "ef"  # which is gone through by compressed vectors, but goes on until enough are found
    counts = (_FEW_CANDIDATES if graph else _MANY_CANDIDATES) if compressed else (None,)
    return [[Effort(**({name: depth} if name else {}), candidates=count) for count in counts] for depth in depths]


def _depths(faiss: Any, index: Any) -> tuple[str | None, list[int | None]]:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        return "ef", list(_EFS)
    if isinstance(index, faiss.IndexIVF):
        return "nprobe", [*(depth for depth in _NPROBES if depth < index.nlist), index.nlist]
    inside = _inside(faiss, index)
    return (None, [None]) if inside is None else _depths(faiss, inside)
