"""What every form of a comparison says in words: the main result, each verdict, power, conventions."""

from evaluation.comparison import HOLE, LEVEL, Comparison, Tested
from evaluation.power import POWER, queries_needed
from evaluation.presentation import conventions as report_conventions
from evaluation.presentation import ends
from evaluation.significance import Interval, Paired

SEEN = 0.01
"""The difference for which it is said how many queries would be needed."""
_CORRECTED = {"holm": "Holm's correction", "bh": "Benjamini and Hochberg's correction"}
MARKS = {"better": "▲", "worse": "▼", "unclear": "≈"}
_SURE_ENOUGH = 0.01


def headline(comparison: Comparison) -> str:
    """The main result in one sentence, without its full stop: which system is best, beside what, how sure."""
    place = _place(comparison)
    best = _best(comparison)
    mean = comparison.suite[best]
    reached = f"{comparison.measure} {mean.value:.4f} {place}"
    if not comparison.others:
        return f"{best} reaches {reached} ({_interval(mean.interval, '.3f')})"
    if best == comparison.baseline:
        better = [one for one in comparison.tests if one.dataset and one.verdict == "better"]
        where = f"; better on a set of its own: {_listed(better)}" if better else ""
        many = "neither of the two others is" if len(comparison.others) == 2 else "no other system is"
        many = many if len(comparison.others) > 1 else f"{comparison.others[0]} is not"
        return f"{best}, the baseline, has the best {reached}, and {many} better{where}"
    one = main_test(comparison, best)
    beside = f"{one.result.difference:+.4f} beside {comparison.baseline} ({_sure(comparison, one)})"
    if one.verdict == "unclear":
        return f"{best} has the best {reached}, but {beside} may be chance"
    return f"{best} is best: {reached}, {beside}{_counted(comparison, best)}"


def main_test(comparison: Comparison, system: str) -> Tested:
    """The comparison of a system with the baseline over all sets, or on the only one."""
    return comparison.tested(system, None if len(comparison.reports) > 1 else next(iter(comparison.reports)))


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each system but the baseline and the one that the headline is about."""
    found = []
    on_average = " on average" if len(comparison.reports) > 1 else ""
    for system in comparison.others:
        if system == _best(comparison):
            continue
        one = main_test(comparison, system)
        said = {"better": "is better than", "worse": "is worse than", "unclear": "cannot be told from"}[one.verdict]
        found.append(
            f"{system} {said} {comparison.baseline}{on_average}: {one.result.difference:+.4f} "
            f"({_sure(comparison, one)}){_counted(comparison, system)}."
        )
    return found


def power(comparison: Comparison) -> list[str]:
    """What each set could show at all: a sentence for each system on each set."""
    return [
        f"{one.dataset}, {one.system}: {power_of(one.result)}"
        for one in comparison.tests
        if isinstance(one.result, Paired) and one.dataset
    ]


def power_of(result: Paired) -> str:
    """What so many queries could show of two systems that differ so, with a full stop."""
    if result.detectable is None:
        return "the queries' differences have no spread, so that nothing can be said of what could be found."
    needed = queries_needed(result.deviation, SEEN)
    return (
        f"the differences of {result.queries:,} queries have a standard deviation of {result.deviation:.3f}; a mean "
        f"difference of {result.detectable:.3f} would be found with a chance of {100 * POWER:.0f}%, and "
        f"{needed:,} queries are needed to find one of {SEEN:.2f}."
    )


def weakest(comparison: Comparison) -> str:
    """One sentence about power: the least and the greatest difference that the sets would show; empty without tests."""
    found = [
        (one.result.detectable, one.dataset)
        for one in comparison.tests
        if isinstance(one.result, Paired) and one.result.detectable is not None
    ]
    if not found:
        return ""
    (low, best), (high, worst) = min(found), max(found)
    span = f"{low:.3f} ({best})" if low == high else f"{low:.3f} ({best}) to {high:.3f} ({worst})"
    without = dict.fromkeys(
        one.dataset or ""
        for one in comparison.tests
        if isinstance(one.result, Paired) and one.result.detectable is None
    )
    rest = f" Of {', '.join(without)} this cannot be said: differences there have no spread." if without else ""
    return (
        f"With a chance of {100 * POWER:.0f}%, these queries would show a mean difference of {span} or more; smaller "
        "ones are mostly missed, and more so after correction for several comparisons: that nothing was found does "
        f"not mean that there is nothing.{rest}"
    )


def published_lines(comparison: Comparison) -> list[str]:
    """A line for each published figure: whose, what, from where and how it was made."""
    return [
        f"{one.system}, {one.dataset}: {one.measure} {one.value:g} ({one.source}; {one.convention})"
        for one in comparison.published
    ]


def legend(comparison: Comparison) -> str:
    """What the marks mean."""
    return (
        f"{MARKS['better']} better and {MARKS['worse']} worse than {comparison.baseline}: p of the paired "
        f"randomisation test is below {LEVEL:g} after {_CORRECTED[comparison.correction]} for all "
        f"{len(comparison.tests)} comparisons. {MARKS['unclear']} cannot be told from it: the difference may be chance."
    )


def p_text(p: float) -> str:
    """A p-value with as many digits as mean something."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}" if p < _SURE_ENOUGH else f"{p:.3f}"


def conventions(comparison: Comparison) -> dict[str, str]:
    """The rules by which the numbers were made."""
    reports = comparison.reports
    rules = [report_conventions(report) for report in reports.values()]
    same = {name: text for name, text in rules[0].items() if all(one[name] == text for one in rules)}
    apart = {
        f"{name} ({dataset})": text
        for dataset, one in zip(reports, rules, strict=True)
        for name, text in one.items()
        if name not in same
    }
    over = "queries inside each set, and the sets" if comparison.over_sets else "queries inside each set"
    many = {
        "mean over sets": "every set counts the same: " + ", ".join(reports),
        "interval of that mean": f"stratified bootstrap: {over} are drawn again",
    }
    return {
        **same,
        **apart,
        **(many if len(reports) > 1 else {}),
        "intervals": "95%, percentile bootstrap over queries; of differences: of the paired differences",
        "p": f"paired sign-flip randomisation, {comparison.samples:,} samples, seed {comparison.seed}, "
        "(c + 1) / (samples + 1); exact where at most 20 queries differ",
        "correction": f"{_CORRECTED[comparison.correction]}, over all {len(comparison.tests)} comparisons on this page",
        "second opinion": "Student's paired t-test, not corrected",
        f"hole@{HOLE}": f"share of the first {HOLE} hits without a judgement, which count as not relevant",
    }


def _best(comparison: Comparison) -> str:
    return max(comparison.systems, key=lambda system: comparison.suite[system].value)


def _place(comparison: Comparison) -> str:
    names = list(comparison.reports)
    if len(names) > 1:
        return f"on average over {len(names)} sets ({', '.join(names)})"
    return f"on {names[0]} ({len(comparison.reports[names[0]].qrels):,} queries)"


def _sure(comparison: Comparison, one: Tested) -> str:
    corrected = f" after {_CORRECTED[comparison.correction]}" if len(comparison.tests) > 1 else ""
    sign = "" if p_text(one.adjusted).startswith("<") else "= "
    return f"{_interval(one.result.interval, '+.4f')}, p {sign}{p_text(one.adjusted)}{corrected}"


def _interval(interval: Interval | None, form: str) -> str:
    return f"95% interval {ends(interval, form)}" if interval else ends(interval)


def _counted(comparison: Comparison, system: str) -> str:
    """On how many sets a system is better and worse; nothing where there is but one set."""
    if len(comparison.reports) < 2:
        return ""
    here = [one.verdict for one in comparison.tests if one.system == system and one.dataset]
    better, worse = here.count("better"), here.count("worse")
    return f"; better on {better or 'none'} of {len(here)} sets, worse on {worse or 'none'}"


def _listed(tests: list[Tested]) -> str:
    return ", ".join(f"{one.system} on {one.dataset}" for one in tests)
