"""Networks with something before or after them, as the tests of the evaluation give them."""

from torch import nn

from lib.evaluate import report

FEW = {"PGD-20": {"steps": 2}, "PGD-50": {"steps": 3}, "C&W": {"steps": 2}}
CHANGES = FEW | {"AA": {"images": 5, "stages": ["apgd-ce"]}}


def made(net, x, y, **given):
    """A report of few steps, on five images under AutoAttack."""
    return report(net, x, y, **({"epsilon": 0.05, "changes": CHANGES} | given))


class Before(nn.Module):
    """A network behind a function of its images."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.net(self.function(x))


class After(Before):
    """A network before a function of its logits."""

    def forward(self, x):
        return self.function(self.net(x))


def fired(result):
    """The names of the sanity checks that fired in a report."""
    return {finding.check for finding in result.findings if finding.fired}
