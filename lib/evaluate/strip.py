"""The sanity checks as a coloured strip: a line per network, a cell per check, what fired in words below."""

from collections.abc import Mapping, Sequence
from html import escape

from lib.evaluate.sanity import Finding

FIRED, SOUND = "#f4a582", "#d9ead3"
CELL = "padding: 1px 5px; font-size: 75%; text-align: right; border: 1px solid white"
HEAD = "padding: 1px 5px; font-size: 75%; text-align: left; font-weight: normal; vertical-align: bottom"


def summary(findings: Mapping[str, Sequence[Finding]], contradictions: Mapping[str, Sequence[str]]) -> list[str]:
    """What fired, a sentence per check and per contradiction, with the networks; one sentence where nothing did."""
    fired: dict[str, list[str]] = {}
    for network, found in findings.items():
        for one in (finding for finding in found if finding.fired):
            fired.setdefault(f"{one.check} ({one.meaning}; limit {one.limit:.3g})", []).append(
                f"{network} {one.value:.3g}"
            )
    said = [f"{check}: {', '.join(networks)}." for check, networks in fired.items()]
    said += [f"{network}: {sentence}." for network, sentences in contradictions.items() for sentence in sentences]
    if not findings:
        return [*said, "No sanity checks were made."]
    whom = "the network" if len(findings) == 1 else f"any of {len(findings)} networks"
    return said or [f"No sanity check fired on {whom}."]


def strip(findings: Mapping[str, Sequence[Finding]], contradictions: Mapping[str, Sequence[str]]) -> str:
    """The strip as HTML; a cell has the value, and says limit and meaning where the mouse rests."""
    checks = list(dict.fromkeys(finding.check for found in findings.values() for finding in found))
    lines = []
    for network, found in findings.items():
        cells = {finding.check: finding for finding in found}
        inside = "".join(_cell(cells.get(check)) for check in checks)
        lines.append(f'<tr><th style="{HEAD}">{escape(network)}</th>{inside}</tr>')
    heads = "".join(f'<th style="{HEAD}; max-width: 6em; white-space: normal">{escape(check)}</th>' for check in checks)
    table = f'<table><tr><th style="{HEAD}">sanity checks</th>{heads}</tr>{"".join(lines)}</table>' if findings else ""
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in summary(findings, contradictions))
    return f'{table}<ul style="font-size: 80%; margin-top: 0.3em; max-width: 70em">{said}</ul>'


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return f'<td style="{CELL}">–</td>'
    colour, weight = (FIRED, "bold") if finding.fired else (SOUND, "normal")
    title = escape(f"{finding.check}: {finding.value:.3g}, limit {finding.limit:.3g}; {finding.meaning}")
    text = f"{finding.value:.3g}"
    return f'<td style="{CELL}; background: {colour}; font-weight: {weight}" title="{title}">{text}</td>'
