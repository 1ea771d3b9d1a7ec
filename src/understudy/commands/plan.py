"""The command understudy plan."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..core import UserError
from .parts.common import Output, command_line, parse
from .parts.groups import JsonOption, StepCount, command_options

RateOption = Annotated[float, arg(metavar="RATE")]


@command_options
class PlanOptions(JsonOption):
    """Calculate how many rollouts a comparison needs.

    With two rates: to distinguish policies with these success rates by the test of eval --against and compare. The
    result is given for the same starts and for different ones, with one test at the end and with a test after each
    rollout. With one rate and --threshold: to distinguish the rate from a bound.
    """

    rates: Annotated[tuple[float, ...], Positional, arg(metavar="RATE RATE")]
    """success rates that you expect, from 0 to 1, such as 0.7 0.8"""
    threshold: Annotated[float | None, arg(metavar="RATE")] = None
    """distinguish one rate from this bound"""
    alpha: RateOption = 0.05
    """significance level: probability of calling equal policies different"""
    power: RateOption = 0.8
    """probability with which the difference must be found"""
    episodes: StepCount = None
    """also print the probability that N rollouts of each find it"""


def main(args: list[str]) -> None:
    o = parse(PlanOptions, "plan", args)
    from ..evaluate.planning import MAX_ROLLOUTS

    if len(o.rates) != (2 if o.threshold is None else 1):
        raise UserError(
            f"needs {'two rates, or one and --threshold' if o.threshold is None else 'one rate with --threshold'}, "
            f"but has {' '.join(f'{r:g}' for r in o.rates) or 'none'}",
            where="understudy plan",
            hint="such as: understudy plan 0.7 0.8")
    if o.episodes is not None and o.episodes > MAX_ROLLOUTS:
        raise UserError(f"at most {MAX_ROLLOUTS:,} can be planned, not {o.episodes:,}", where="--episodes",
                        hint="nobody runs more: such as --episodes 100")
    with Output(o.json) as out:
        if o.threshold is None:
            _plan_comparison(o, out)
        else:
            _plan_rate(o, out)


def _plan_comparison(o: PlanOptions, out: Output) -> None:
    from ..evaluate.planning import paired_power, plan, unpaired_power

    first, second = o.rates
    p = plan(first, second, o.alpha, o.power)
    document = p.to_json()
    powers = {}
    if o.episodes is not None:
        powers = {"unpaired": unpaired_power(first, second, o.episodes, o.alpha),
                  **{c: paired_power(first, second, o.episodes, c, o.alpha) for c in p.paired}}
        document["power"] = {"unpaired": powers["unpaired"], "paired": {f"{c:g}": powers[c] for c in p.paired}}
    rows: list[tuple[str, int, Any]] = [("each on its own starts", p.unpaired, "unpaired")]
    rows += [("the same starts, outcomes unrelated" if c == 0 else f"the same starts, outcomes correlated {c:g}", n, c)
             for c, n in p.paired.items()]
    out.print(f"Rollouts of each policy that find {max(o.rates):g} better than {min(o.rates):g} with probability "
            f"{o.power:g}", f"and call equal policies different with probability {o.alpha:g} at most:", "")
    if powers:
        out.print(f"{'':<52}{f'found with {o.episodes}':>18}")
    out.print(*(f"  {name:<42}{n:>8,}" + (f"{powers[key]:>18.2f}" if powers else "") for name, n, key in rows))
    _print_sequential(out, p)
    out.print(*_explain_power(p), *_explain_sequential(p.expected, p.maximum, p.paired[0.0]))
    out.print_json(document)


def _explain_power(p) -> list[str]:
    most = max(p.paired)
    if not most:
        return ["Rates so different are hardly correlated: the same starts save little."]
    return [f"The same starts cost nothing, and save {1 - p.paired[most] / p.paired[0.0]:.0%} of the rollouts where "
            f"outcomes are correlated {most:g}:", "policies that fail on the same hard ones."]


def _print_sequential(out: Output, p) -> None:
    out.print(f"  {'looking after each, at most':<42}{p.maximum:>8,}",
            f"  {'                    on average':<42}{p.expected:>8,}", "")


def _explain_sequential(expected: int, maximum: int, fixed: int) -> list[str]:
    """Returns lines that explain the cost and the benefit of a test after each rollout."""
    change = expected / fixed - 1
    return [f"Looking after each takes {abs(change):.0%} {'fewer' if change < 0 else 'more'} on average if the "
            "difference is as planned, and most are saved",
            f"if it is larger. It must be allowed {maximum / fixed:.1f} times as many."]


def _plan_rate(o: PlanOptions, out: Output) -> None:
    from ..evaluate.planning import plan_rate, rate_power

    rate, threshold = o.rates[0], o.threshold
    assert threshold is not None
    p = plan_rate(rate, threshold, o.alpha, o.power)
    document = p.to_json()
    side = "above" if rate > threshold else "below"
    out.print(f"Rollouts that find a rate of {rate:g} {side} {threshold:g} with probability "
            f"{o.power:g}, and are wrong with probability {o.alpha:g} at most:",
            "", f"  {'all at once':<42}{p.fixed_size:>8,}")
    _print_sequential(out, p)
    if o.episodes is not None:
        document["power"] = rate_power(rate, threshold, o.episodes, o.alpha)
        out.print(f"With {o.episodes}, all at once, it is found with probability {document['power']:.2f}.")
    out.print(*_explain_sequential(p.expected, p.maximum, p.fixed_size))
    out.suggest(command_line("eval", "RUN", "ENV", "--episodes", p.maximum, "--sequential",
                             "--threshold", f"{threshold:g}"))
    out.print_json(document)
