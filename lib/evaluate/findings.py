"""What sanity checks found, as values, in sentences, and as a coloured strip: a line per network, a cell per check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Finding:
    """What a check measured and the limit above which it fires; both in percent unless `meaning` says otherwise."""

    check: str
    value: float
    limit: float
    meaning: str

    @property
    def fired(self) -> bool:
        """Whether the value is above its limit, by more than float rounding."""
        return self.value > self.limit + 1e-6


FIRED, SOUND = "#f4a582", "#d9ead3"
CELL = "padding: 1px 5px; font-size: 75%; text-align: right; border: 1px solid white"
HEAD = "padding: 1px 5px; font-size: 75%; text-align: left; font-weight: normal; vertical-align: bottom"


def summary(findings: Mapping[str, Sequence[Finding]], contradictions: Mapping[str, Sequence[str]]) -> list[str]:
    """What fired, a sentence per check and per contradiction, with the networks; one sentence where nothing did."""
    fired: dict[str, list[str]] = {}
    for network, finding in ((network, one) for network, each in findings.items() for one in each if one.fired):
        check = f"{finding.check} ({finding.meaning}; limit {finding.limit:.3g})"
        fired.setdefault(check, []).append(f"{network} {finding.value:.3g}")
    sentences = [f"{check}: {', '.join(networks)}." for check, networks in fired.items()]
    sentences += [f"{network}: {sentence}." for network, each in contradictions.items() for sentence in each]
    if not findings:
        return [*sentences, "No sanity checks were made."]
    networks = "the network" if len(findings) == 1 else f"any of {len(findings)} networks"
    return sentences or [f"No sanity check fired on {networks}."]


def strip(findings: Mapping[str, Sequence[Finding]], contradictions: Mapping[str, Sequence[str]]) -> str:
    """The strip as HTML; a cell has the value, and its title limit and meaning. The sentences stand below."""
    checks = list(dict.fromkeys(finding.check for each in findings.values() for finding in each))
    heads = "".join(f'<th style="{HEAD}; max-width: 6em; white-space: normal">{escape(check)}</th>' for check in checks)
    lines = [f'<tr><th style="{HEAD}">sanity checks</th>{heads}</tr>'] if findings else []
    for network, each in findings.items():
        by_check = {finding.check: finding for finding in each}
        cells = "".join(_cell(by_check.get(check)) for check in checks)
        lines.append(f'<tr><th style="{HEAD}">{escape(network)}</th>{cells}</tr>')
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in summary(findings, contradictions))
    below = f'<ul style="font-size: 80%; margin-top: 0.3em; max-width: 70em">{sentences}</ul>'
    return (f"<table>{''.join(lines)}</table>" if findings else "") + below


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return f'<td style="{CELL}">–</td>'
    colour, weight = (FIRED, "bold") if finding.fired else (SOUND, "normal")
    title = escape(f"{finding.check}: {finding.value:.3g}, limit {finding.limit:.3g}; {finding.meaning}")
    style = f"{CELL}; background: {colour}; font-weight: {weight}"
    return f'<td style="{style}" title="{title}">{finding.value:.3g}</td>'
