"""Draw README's picture, the kept evidence under one protocol: outputs/reference/small/compare_papers.png."""

from lib import experiment, report
from lib.experiment.reference import REFERENCE
from lib.report import figures

table = experiment.open_table("compare_papers", experiment.Parameters(device="cpu"))
figure = figures.kept(report.reported_and_kept(table), robust="AA")
picture = REFERENCE / "small" / "compare_papers.png"
figure.savefig(picture, dpi=150, bbox_inches="tight", metadata={"Software": None})
print(picture.name)
