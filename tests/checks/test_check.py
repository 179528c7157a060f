"""The pipeline: every stage that can be run is run, and the others say why they were not."""

import threading
from collections import OrderedDict

import pytest
import torch
from networks import Boxes, Grown, Words, settle
from torch import nn

from pytest_ckptcompat import Recipe, allow, check, open_checkpoint, tile
from pytest_ckptcompat.checks import suggestion
from pytest_ckptcompat.checks.arguments import CheckArguments
from pytest_ckptcompat.checks.check import Check
from pytest_ckptcompat.cli import main
from pytest_ckptcompat.recipes.operators.custom import custom
from pytest_ckptcompat.recipes.operators.rename import drop

GROW = Recipe(tile("out2.*", dim=0))
INPUTS = (2, 3, 8, 8)


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(settle(Boxes()).state_dict(), path)
    return path


def stages(report):
    return {stage.name: stage.status for stage in report.stages}


def rules(report):
    return {found.rule for found in report.errors}


def saved(path, state):
    torch.save(state, path)
    return path


def test_everything_that_can_be_run(net):
    report = check(Grown, net, recipe=GROW, inputs=INPUTS, source_model=Boxes, device="cpu")
    assert report.ok, str(report)
    assert stages(report) == {
        "open": "passed", "recipe": "passed", "compare": "passed", "load": "passed", "verify": "passed",
        "forward": "passed", "optimizer": "skipped",
    }  # fmt: skip
    assert {promise.status for promise in report.promises} == {"kept"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto runs on the card")
def test_auto_runs_on_the_cpu_and_rehearses_cuda(net):
    report = check(Boxes, net, inputs=INPUTS)
    assert stages(report)["forward"] == "passed"
    assert stages(report)["forward-cuda"] == "rehearsed"


def test_the_header_is_enough_until_a_value_is_needed(net):
    for given in (
        {},
        {"device": "none", "inputs": INPUTS, "recipe": GROW},
        {"device": "rehearse", "inputs": INPUTS},
    ):
        ckpt = open_checkpoint(net)
        before = ckpt.bytes_read
        report = check(Grown if "recipe" in given else Boxes, ckpt, **given)
        assert report.ok, str(report)
        assert ckpt.bytes_read == before
        assert stages(report)["load"] == "skipped"
    assert stages(report)["forward"] == "rehearsed"


def test_a_checkpoint_that_cant_be_read_is_a_finding(tmp_path):
    report = check(Boxes, tmp_path / "none.pth")
    assert rules(report) == {"no-checkpoint"}
    assert stages(report)["open"] == "failed"
    assert "none.pth was not checked: it does not exist" in report.verdict
    assert report.stages[0].detail == "no-checkpoint"  # the finding says it all; the stage names its rule


def test_a_model_that_cant_be_built_is_a_finding(net):
    def broken():
        raise TypeError("no width")

    assert rules(check(broken, net)) == {"model-error"}
    assert rules(check("networks:Nothing", net)) == {"model-error"}
    assert rules(check(lambda: 3, net)) == {"model-error"}


def test_of_a_recipe_that_does_not_apply_the_error_alone_is_told_and_what_would_do_instead(net):
    """Without it the checkpoint would be compared as nobody means to load it."""
    report = check(Grown, net, recipe=Recipe(tile("out3.*", dim=0)))
    assert rules(report) == {"recipe-unused-op"}
    assert (stages(report)["recipe"], stages(report)["compare"]) == ("failed", "skipped")
    assert 'net.pth was not checked: tile("out3.*", dim=0) matches nothing' in report.verdict
    assert report.suggestion == GROW
    assert "this recipe, instead of the one declared, would make it load:\n" in str(report)


def test_nothing_is_suggested_for_differences_that_are_waived(net):
    waived = [allow("shape-mismatch", "out2.*", reason="r"), allow("dtype-mismatch", "*", reason="r")]
    report = check(Grown, net, allow=waived)
    assert [found.rule for found in report.errors] == ["waiver-unused"]
    assert report.suggestion is None


def test_an_operator_too_many_is_left_out_of_the_suggestion(net):
    report = check(Grown, net, recipe=Recipe(*GROW.operators, drop("aux.*")))
    assert report.suggestion == GROW
    report = check(Boxes, net, recipe=GROW)
    assert report.suggestion == Recipe()
    assert "\nwithout a recipe it would load\n" in str(report)
    assert "Without a recipe it would load." in report.to_markdown()


def test_a_fault_in_the_suggestions_leaves_the_verdict(net, monkeypatch):
    monkeypatch.setattr(suggestion, "repair", lambda *_: 1 / 0)
    report = check(Grown, net)
    assert rules(report) == {"shape-mismatch"}
    assert report.suggestion is None
    assert "an error of pytest-ckptcompat itself: ZeroDivisionError" in report.remedy.notes[0]


def test_a_protected_key_names_the_operator_and_the_key(net):
    report = check(Grown, net, recipe=GROW, protect=("out2.b*", "conv*"))
    (found,) = report.errors
    assert (found.rule, found.key) == ("recipe-protected-key", "out2.bias")
    assert 'tile("out2.*", dim=0)' in found.message


def test_a_module_is_left_as_it_was(net):
    model = Boxes()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    assert check(model, net, inputs=INPUTS).ok
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_waived_keys_are_named_and_do_not_fail(net, tmp_path):
    state = Boxes().state_dict()
    state["aux.weight"] = torch.zeros(2)
    path = saved(tmp_path / "aux.pth", state)
    assert not check(Boxes, path).ok
    report = check(Boxes, path, inputs=INPUTS, allow=[allow("unexpected-key", "aux.*", reason="dropped")])
    assert report.ok, str(report)
    assert report.unexpected == ["aux.weight"]
    assert stages(report)["forward"] == "passed"


def test_a_waived_mismatch_is_not_loaded_and_says_so(net):
    report = check(
        Grown, net, inputs=INPUTS, allow=[allow("shape-mismatch", "out2.*", reason="v2 is retrained")]
    )
    assert report.ok
    assert stages(report)["load"] == "skipped"
    assert len(report.mismatched) == 2


def test_values_that_are_not_finite_are_a_warning(tmp_path):
    state = Boxes().state_dict()
    state["fc.0.bias"][2] = float("nan")
    path = saved(tmp_path / "nan.pth", state)
    report = check(Boxes, path, inputs=INPUTS, device="cpu")
    assert ("non-finite-value", "fc.0.bias") in {(found.rule, found.key) for found in report.findings}
    assert check(Boxes, path).ok, "without values there is nothing to find"


def test_ties(tmp_path):
    state = Words().state_dict()
    untied = OrderedDict((key, value.clone()) for key, value in state.items())
    same = saved(tmp_path / "same.pth", untied)
    inputs = "2x6:int64<11"
    assert check(Words, same, inputs=inputs).ok
    untied["head.weight"] += 1
    report = check(Words, saved(tmp_path / "other.pth", untied), inputs=inputs)
    assert "tied-conflict" in rules(report)


def test_what_the_file_would_run_is_a_warning(tmp_path):
    path = saved(tmp_path / "module.pth", nn.Sequential(nn.Linear(2, 2)))
    report = check(lambda: nn.Sequential(nn.Linear(2, 2)), path)
    assert report.ok
    assert [found.rule for found in report.findings] == ["unsafe-pickle"]


def ran(net, declared, **more):
    """A check with what only a run of pytest or the command sets."""
    return Check(CheckArguments.of(**declared), str(net), lambda key: open_checkpoint(net, key), **more).run()


def test_a_lazy_module_drifts_from_no_shape_but_in_its_keys(tmp_path):
    made = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    torch.save(made.state_dict(), tmp_path / "net.pth")

    def lazy(*more):
        return lambda: nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4), *(each() for each in more))

    same = ran(tmp_path / "net.pth", {"model": lazy()}, drift=True)
    assert same.ok, str(same)
    assert (same.matched, same.total) == (4, 4)
    longer = ran(tmp_path / "net.pth", {"model": lazy(lambda: nn.LazyLinear(1))}, drift=True)
    assert [(found.rule, found.key) for found in longer.errors] == [
        ("release-drift", "2.weight"),
        ("release-drift", "2.bias"),
    ]


@pytest.mark.parametrize(
    ("severities", "found"),
    [({}, {"warn"}), ({"dtype-mismatch": "error"}, {"error"}), ({"dtype-mismatch": "off"}, set())],
)
def test_severities(net, severities, found):
    report = ran(net, {"model": lambda: Boxes().half()}, severities=severities)
    assert {each.severity for each in report.findings} == found
    assert report.ok == (found != {"error"})


@pytest.mark.parametrize(
    "given", [{}, {"inputs": INPUTS, "device": "cpu"}, {"inputs": INPUTS, "device": "rehearse"}]
)
def test_cuda_that_is_required_must_have_run(net, given):
    assert "forward-no-cuda" in rules(ran(net, {"model": Boxes, **given}, require_cuda=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card(net):
    declared = {"model": Grown, "recipe": GROW, "inputs": INPUTS, "source_model": Boxes}
    report = ran(net, declared, require_cuda=True)
    assert report.ok, str(report)
    assert "on cuda" in str(report)


def test_a_suggestion_goes_on_where_the_recipe_ends(tmp_path):
    state = OrderedDict((f"module.{key}", value) for key, value in Boxes().state_dict().items())
    path = saved(tmp_path / "wrapped.pth", state)
    report = check(Grown, path)
    assert report.suggestion is not None
    assert check(Grown, path, recipe=report.suggestion).ok
    partly = check(Grown, path, recipe=Recipe(report.suggestion.operators[0]))
    assert partly.suggestion == report.suggestion


def test_shapes_after_a_recipe_are_not_said_to_be_the_checkpoints(net):
    report = check(Grown, net, recipe=Recipe(tile("out2.*", dim=0, to=9)), direction="full")
    assert "key          after recipe    model" in str(report)
    assert "| rule | key | after recipe | model |" in report.to_markdown()
    said = {(each.rule, each.checkpoint, each.message) for each in report.findings if each.key == "out2.bias"}
    assert said == {
        ("shape-mismatch", "(9,) f32", ""),
        ("rollback-mismatch", "(4,) f32", "the checkpoint as it is, without the recipe"),
    }
    assert report.stages[-2].detail == "the recipe does not make it fit"


def test_protect_that_names_nothing_fails(net):
    report = check(Boxes, net, protect=("konv1*",))
    (found,) = report.errors
    assert (found.rule, found.key) == ("recipe-protected-key", "konv1*")
    assert "conv1" in found.message
    assert {stage.detail for stage in report.stages if stage.name == "load"} == {
        "an error was found before it"
    }


def test_outputs_that_are_nan_are_no_kept_function(tmp_path):
    state = Boxes().state_dict()
    state["conv1.0.weight"][:] = float("nan")
    path = saved(tmp_path / "nan.pth", state)
    report = check(Grown, path, recipe=GROW, inputs=INPUTS, source_model=Boxes, device="cpu")
    assert {p.status for p in report.promises if p.name == "function kept"} == {"unchecked"}
    assert "forward-non-finite" in rules(report)


def test_keys_that_torch_fills_in_are_no_match(tmp_path):
    state = OrderedDict((f"module.{key}", value) for key, value in Boxes().state_dict().items())
    report = check(Boxes, saved(tmp_path / "wrapped.pth", state))
    assert (report.matched, report.total) == (0, 2 * len(state))


def test_an_optimizer_without_state_is_not_called_passed(net):
    report = check(Boxes, net, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))
    assert report.ok
    assert stages(report)["optimizer"] == "skipped"


def test_values_are_read_once_to_load_and_to_verify(net):
    ckpt = open_checkpoint(net)
    before = ckpt.bytes_read
    assert check(Boxes, ckpt, inputs=INPUTS, device="cpu", source_model=Boxes).ok
    assert ckpt.nbytes <= ckpt.bytes_read - before < 1.05 * ckpt.nbytes


def test_a_partial_is_called_what_it_calls(tmp_path):
    from functools import partial

    torch.save(Boxes().state_dict(), tmp_path / "net.pth")
    assert check(partial(partial(Boxes, 4), hidden=8), tmp_path / "net.pth").model == "networks.Boxes"


def test_a_checkpoint_of_which_nothing_is_loaded_is_not_called_verified(tmp_path):
    def linear():
        return nn.Linear(2, 2)

    path = saved(tmp_path / "words.pth", Words().state_dict())
    everything = [allow(rule, reason="for the test") for rule in ("missing-key", "unexpected-key")]
    report = check(linear, path, inputs=(1, 2), allow=everything)
    assert report.ok
    assert "(19 findings waived): 0 of 19 keys match" in report.verdict
    assert [(promise.name, promise.status) for promise in report.promises] == [("loaded whole", "unchecked")]


def test_of_waived_keys_the_others_are_verified(tmp_path):
    state = settle(Boxes()).state_dict()
    state["aux.weight"] = torch.ones(3)
    report = check(Boxes, saved(tmp_path / "aux.pth", state), inputs=INPUTS,
                   allow=[allow("unexpected-key", "aux.*", reason="old head")])  # fmt: skip
    details = {promise.name: (promise.status, promise.detail) for promise in report.promises}
    assert details == {"untouched": ("kept", "28 keys bit-equal"), "loaded whole": ("kept", "28 tensors")}


class Versioned(nn.Linear):
    """Looks at a value while it loads, as models do that renamed keys between versions."""

    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("version", torch.tensor([3.0]))

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        if state_dict[f"{prefix}version"].item() < 2:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}kernel")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_a_loader_that_looks_at_a_value_gets_it(tmp_path):
    state = Versioned().state_dict()
    assert check(Versioned, saved(tmp_path / "v3.pth", state), inputs=(1, 3)).ok
    state["version"][0], state["kernel"] = 1, state.pop("weight")
    report = check(Versioned, saved(tmp_path / "v1.pth", state), inputs=(1, 3))
    assert report.ok, str(report)
    del state["bias"]
    report = check(Versioned, saved(tmp_path / "bad.pth", state))
    assert (report.missing, report.unexpected, rules(report)) == (["bias"], [], {"missing-key"})


def test_a_step_that_fails_on_values_alone_is_told_where_the_loader_looks_at_one(tmp_path):
    def picky(state):
        if not state["weight"].is_meta:
            raise ValueError("not these weights")
        return {**state, "weight": state["weight"] * 2}

    path = saved(tmp_path / "v3.pth", Versioned().state_dict())
    report = check(Versioned, path, recipe=Recipe(custom(picky, touches=["weight"])))
    assert rules(report) == {"recipe-error"}
    assert "not these weights" in report.verdict
    assert stages(report)["load"] == "skipped"


def test_a_lock_has_no_value_to_look_at(tmp_path):
    path = saved(tmp_path / "v3.pth", Versioned().state_dict())
    lock = tmp_path / "v3.ckpt.json"
    assert main(["lock", str(path), "-o", str(lock)]) == 0
    report = check(Versioned, lock)
    assert rules(report) == {"load-error"}
    assert "v3.ckpt.json does not load into test_check.Versioned: the model's own loader " in report.verdict
    assert "check against the checkpoint" in report.verdict


class Stateful(nn.Linear):
    """Has state that is not a tensor, or one that it looks at."""

    def __init__(self, state=None):
        super().__init__(3, 2)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = {"k": state["k"]} if isinstance(self.state, dict) else torch.tensor(int(state))


@pytest.mark.parametrize("state", [{"k": 1}, torch.tensor(4)], ids=["dict", "tensor"])
def test_extra_state_fits_in_both_directions_from_file_and_lock(tmp_path, state):
    def model():
        return Stateful(state)

    path = saved(tmp_path / "net.pth", model().state_dict())
    lock = tmp_path / "net.ckpt.json"
    assert main(["lock", str(path), "-o", str(lock)]) == 0
    for each in (path, lock):
        report = check(model, each, inputs=(1, 3), direction="full")
        assert report.ok, str(report)
        without = check(lambda: nn.Linear(3, 2), each, direction="forward")
        assert [(found.rule, found.key) for found in without.errors] == [("rollback-missing", "_extra_state")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto runs on the card")
@pytest.mark.parametrize("model", [Boxes, lambda: torch.nn.Linear(3, 4)], ids=["same words", "other words"])
def test_what_fails_on_the_cpu_and_in_the_rehearsal_is_told_once(tmp_path, model):
    report = check(model, saved(tmp_path / "net.pth", model().state_dict()), inputs=(2, 4, 8, 8))
    [found] = report.errors
    assert found.rule == "forward-error"
    assert (stages(report)["forward"], stages(report)["forward-cuda"]) == ("failed", "failed")
    assert str(report).count(found.message[:40]) <= 2  # the verdict, and the finding


def test_a_key_counts_for_an_opened_checkpoint_too(tmp_path):
    torch.save({"model": Boxes().state_dict(), "old": {"a": torch.zeros(2)}}, tmp_path / "both.pth")
    opened = open_checkpoint(tmp_path / "both.pth", "model")
    assert check(Boxes, opened).ok
    assert check(Boxes, opened, state_dict_key="model").ok
    assert check(Boxes, opened, state_dict_key="old").unexpected == ["a"]
    (found,) = check(Boxes, opened, state_dict_key="nope").errors
    assert found.rule == "no-checkpoint"
    assert "nope" in found.message


def refusing(*arguments, **more):
    raise OSError("not here")


@pytest.mark.parametrize(
    "method",
    [
        *("state_dict", "eval", "train", "named_parameters", "named_modules", "named_buffers", "modules"),
        *("_save_to_state_dict", "get_extra_state", "__hash__", "infer"),
    ],
)
def test_whatever_of_a_model_raises_is_one_line(method, net):
    """Every check asks a model for these, and none of them usually raises."""
    code = property(refusing) if method == "infer" else refusing
    broken = type("Broken", (Boxes,), {method: code})
    report = check(broken, net, inputs=INPUTS, method="infer" if method == "infer" else "forward")
    (found,) = report.errors
    assert found.rule == "model-error"
    assert "OSError: not here (test_check.py:" in report.verdict
    assert set(stages(report).values()) <= {"passed", "skipped"}


def test_threads_wait_for_each_other(net):
    """A check seeds the process and simulates a card; one inside another goes on."""
    reports = []

    def nested():
        assert check(Boxes, net, inputs=INPUTS).ok
        return Boxes()

    threads = [
        threading.Thread(target=lambda: reports.append(check(nested, net, inputs=INPUTS))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.errors for report in reports] == [[], []]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_check_in_a_mode_of_its_caller(mode, net):
    with mode():
        report = check(Boxes, net, inputs=INPUTS, source_model=Boxes)
        assert not torch.is_grad_enabled()
    assert report.ok, str(report)
