import pytest
import torch
from small import parameters

from lib.data import Split
from lib.errors import UserError
from lib.evaluate import AttackSpec, evaluate
from lib.experiment.planning import plan, run
from lib.experiment.table import open_table


def table7(outputs, **changes):
    changes = {"students": ["ResNet34"], "teachers": [], "rows": ["PGD-AT"], **changes}
    return open_table("table7_dgad", parameters(outputs, **changes))


def test_a_transfer_is_made_on_the_surrogate_and_scored_on_the_target(make_net, batch):
    target, surrogate, split = make_net(), make_net(), Split(*batch)
    column = AttackSpec("FGSM", "fgsm", epsilon=0.3, batch_size=len(split.labels))
    (transfer,) = evaluate(target, split, (column,), surrogate)
    surrogate.eval()
    x = split.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(surrogate(x), split.labels), x)
    x_adv = (split.images + 0.3 * gradient.sign()).clamp(0, 1)
    right = target.eval()(x_adv).argmax(1) == split.labels
    assert transfer.flags == "".join("01"[flag] for flag in right.tolist())


def test_a_surrogate_that_is_the_network_it_attacks_is_refused(tmp_path):
    with pytest.raises(UserError, match="the surrogate ResNet34 is the network it attacks"):
        table7(tmp_path, settings={"models": {"ResNet34": "ResNet8-w8"}})


def test_a_transfer_table_trains_its_surrogates_first_and_keys_its_columns_by_them(tmp_path):
    table = table7(tmp_path)
    planned = plan(table)
    surrogate = table.surrogates["ResNet34"]
    jobs = {job.label: job for job in planned.jobs}
    assert jobs["PGD-AT, ResNet34"].waits_for == {surrogate.digest}
    (result,) = run(planned)
    assert {a.column.surrogate for a in result.accuracies} == {surrogate.digest}
    assert {a.column.name for a in result.accuracies} == {"FGSM", "PGD", "JSMA", "Clean", "JSMA (wrong class)"}


def test_the_two_surrogates_of_table_7_are_measured_apart(tmp_path):
    table = table7(tmp_path, students=[])
    one, other = table.cells
    assert one.network == other.network
    assert {column.surrogate for column in one.columns}.isdisjoint(column.surrogate for column in other.columns)
