"""What `retrokit evaluate` does with sets of pairs: read them, encode, measure, show, write."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.anchors import anchors_for
from evaluation.expected import check
from evaluation.pairs_sets import load_pairs
from evaluation.presentation import ends
from evaluation.sts import PairReport, as_json, evaluate_pairs
from evaluation.versions import versions
from indexes.errors import InputError
from indexes.manifest import write_json
from retrieval.console import note, out, progress, table


def measure_pairs(
    spec: str, encoder: str | None, prompt: str | None, json: Path | None, *, unfit: Sequence[str] = ()
) -> None:
    """Measure an encoder on a set of pairs.

    Args:
        spec: Such as `sts:FILE`.
        encoder: The model to load.
        prompt: Whose prompt both sentences get; None: the document's.
        json: Where to write the result.
        unfit: Options that were given and mean nothing for pairs.

    Raises:
        InputError: No encoder, an unfit option, or what `load_pairs` and `evaluate_pairs` refuse.
    """
    if unfit:
        raise InputError(f"{spec.partition(':')[0]} sets are pairs and not searched; leave out {', '.join(unfit)}")
    if encoder is None:
        raise InputError(f"{spec} is measured by an encoder; give --encoder")
    pairs = load_pairs(spec)
    if prompt is not None and pairs.kind == "reranking":
        raise InputError("--prompt is for sentence pairs; queries and documents to rerank have each their own")
    from retrieval.encoder import Encoder

    model = Encoder.load(encoder)
    with progress("encoding", "texts") as on_progress:
        report = evaluate_pairs(model, pairs, prompt=prompt or "document", on_progress=on_progress)
    notices = [*report.notices]
    if prompt in (None, "document"):
        notices += check(model.fingerprint, report.fingerprint, report.metrics)
    if model.truncated:
        notices.append(f"{model.truncated:,} texts were longer than {model.settings.max_length} tokens and were cut.")
    _show(report, notices)
    anchors = [one for one in anchors_for(report.dataset) if one.measure in report.metrics]
    if anchors:
        note(f"published figures on a set of this name: retrokit anchors {report.dataset}")
    if json is not None:
        made_by = {"encoder": encoder, "encoder fingerprint": model.fingerprint, **versions()}
        published = [{**one._asdict(), "yours": report.metrics[one.measure]} for one in anchors]
        write_json(json, {**as_json(report, made_by), "notices": notices, "published": published})
        note(f"wrote {json}")


def _show(report: PairReport, notices: Sequence[str]) -> None:
    unit = "queries" if report.kind == "reranking" else "pairs"
    rows = [[name, f"{value:.4f}"] for name, value in report.metrics.items()]
    for subset, measures in report.subsets.items():
        rows += [[f"{subset}: {name}", f"{value:.4f}"] for name, value in measures.items()]
    out.print(table(["measure", "value"], rows, title=f"{report.dataset} ({report.size:,} {unit})"))
    if report.interval:
        note(f"{report.main}: 95% interval {ends(report.interval, '.4f')} over the {report.size:,} {unit}")
    for notice in notices:
        note(f"notice: {notice}")
