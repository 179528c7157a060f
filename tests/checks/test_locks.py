"""Lock files: a gate without weights."""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
from networks import Boxes, Words

from pytest_ckptcompat import CheckpointError, check, open_checkpoint
from pytest_ckptcompat.checkpoint.lock_writer import lock_of_checkpoint, write_lock
from pytest_ckptcompat.checks.locks import lock_of_model
from pytest_ckptcompat.checks.past_checkpoint import Question
from pytest_ckptcompat.cli import main
from pytest_ckptcompat.core.limits import DEFAULT
from pytest_ckptcompat.report.listing import changes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, model in (("boxes", Boxes()), ("words", Words())):
        torch.save(model.state_dict(), f"{name}.pth")
        write_lock(
            f"{name}.ckpt.json", lock_of_checkpoint(open_checkpoint(f"{name}.pth"), f"{name}.ckpt.json")
        )
    return tmp_path


@pytest.mark.parametrize("name", ["boxes", "words"])
def test_a_lock_is_the_table_of_its_checkpoint(folder, name):
    lock, ckpt = open_checkpoint(f"{name}.ckpt.json"), open_checkpoint(f"{name}.pth")
    assert lock.format == "lock"
    assert changes(ckpt, lock) == []
    assert {tuple(sorted(keys)) for keys in lock.ties} == {tuple(sorted(keys)) for keys in ckpt.ties}
    versions = {module: about["version"] for module, about in ckpt.metadata.items()}
    kept = {module: about["version"] for module, about in lock.metadata.items()}
    assert all(kept[module] == versions[module] for module in kept)


def test_it_gives_torchs_verdict_as_the_checkpoint_does(folder):
    by_lock, by_file = (check(lambda: Boxes(14), path) for path in ("boxes.ckpt.json", "boxes.pth"))
    assert sorted(by_lock.mismatched) == sorted(by_file.mismatched)
    assert by_lock.verdict == by_file.verdict.replace("boxes.pth", "boxes.ckpt.json")


def test_a_batchnorm_counter_that_is_missing_is_missing_by_the_lock_too(folder):
    state = Boxes().state_dict()
    del state["conv1.1.num_batches_tracked"]
    torch.save(state, "cut.pth")
    write_lock("cut.ckpt.json", lock_of_checkpoint(open_checkpoint("cut.pth"), "cut.ckpt.json"))
    assert check(Boxes, "cut.ckpt.json").missing == ["conv1.1.num_batches_tracked"]
    torch.save(OrderedDict(state), "old.pth")  # without _metadata: from before the counter existed
    write_lock("old.ckpt.json", lock_of_checkpoint(open_checkpoint("old.pth"), "old.ckpt.json"))
    assert check(Boxes, "old.ckpt.json").ok
    assert check(Boxes, "old.pth").ok


def test_what_a_lock_cant_tell_is_said(folder):
    report = check(Boxes, "boxes.ckpt.json", inputs=(2, 3, 8, 8))
    assert report.ok
    told = {stage.name: (stage.status, stage.detail) for stage in report.stages}
    assert told["load"] == told["verify"] == told["forward"] == ("skipped", "a lock file has no values")
    assert told["forward-cuda"][0] == "rehearsed"


def test_values_are_refused_with_the_reason(folder):
    with pytest.raises(CheckpointError, match="lock"):
        open_checkpoint("boxes.ckpt.json").tensor("out1.bias")


def test_one_key_a_line_in_natural_order(folder):
    text = (folder / "boxes.ckpt.json").read_text()
    rows = [line for line in text.splitlines() if line.startswith('    "') and "[" in line]
    assert len(rows) == len(Boxes().state_dict())
    assert text.endswith("}\n")
    keys = list(json.loads(text)["tensors"])
    assert keys.index("conv1.0.weight") < keys.index("conv2.0.weight") < keys.index("out1.bias")


def test_saving_in_another_order_changes_no_line(folder):
    state = torch.load("boxes.pth", weights_only=True)
    shuffled = OrderedDict((key, state[key]) for key in sorted(state))
    shuffled._metadata = state._metadata
    torch.save(shuffled, "boxes.pth")
    before = (folder / "boxes.ckpt.json").read_text()
    write_lock("boxes.ckpt.json", lock_of_checkpoint(open_checkpoint("boxes.pth"), "boxes.ckpt.json"))
    assert (folder / "boxes.ckpt.json").read_text() == before


def test_the_lock_of_a_model(folder):
    write_lock("model.ckpt.json", lock_of_model(Question("networks:Words"), DEFAULT))
    lock = open_checkpoint("model.ckpt.json")
    assert changes(open_checkpoint("words.pth"), lock) == []
    assert check(Words, lock).ok


def test_a_model_whose_shapes_are_not_known_yet_can_not_be_locked(folder, capsys, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    Path("lazymodel.py").write_text("from torch import nn\ndef Net(): return nn.LazyLinear(3)\n")
    assert main(["lock", "lazymodel:Net", "-o", "net.ckpt.json"]) == 2
    assert "lazymodel:Net: weight belongs to a lazy module and has no shape yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        '{"ckptcompat_lock": 1',
        '{"ckptcompat_lock": 2, "tensors": {}}',
        '{"ckptcompat_lock": 1, "tensors": []}',
        '{"ckptcompat_lock": 1, "tensors": {"a": ["float32"]}}',
        '{"ckptcompat_lock": 1, "tensors": {"a": ["float32", [-1]]}}',
        '{"ckptcompat_lock": 1, "tensors": {"a": ["flaot32", [1]]}}',
        '{"ckptcompat_lock": 1, "tensors": {"a": ["float32", [1]]}, "ties": [["a", "b"]]}',
        '{"ckptcompat_lock": 1, "tensors": {"a": ["float32", [1]]}, "ties": [["a", []]]}',
        '{"ckptcompat_lock": 1, "tensors": {}}',
        '{"ckptcompat_lock": 1, "tensors": {}, "objects": 5}',
        '{"ckptcompat_lock": 1, "x": ' + "[" * 100_000,
    ],
)
def test_damaged_locks(tmp_path, text):
    path = tmp_path / "x.ckpt.json"
    path.write_text(text)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_lock_that_python_wrote_or_an_editor(tmp_path, mark):
    path = tmp_path / "x.ckpt.json"
    rest = '"tensors": {"a": ["float32", [1]]}, "behaviour": {"model_args": {"eps": Infinity}}}'
    path.write_text(f'{mark}{{"ckptcompat_lock": 2, {rest}', encoding="utf-8")
    assert list(open_checkpoint(path)) == ["a"]


def test_the_command_and_its_hash(folder, capsys):
    assert main(["lock", "boxes.pth", "-o", "h.ckpt.json", "--sha256"]) == 0
    source = json.loads((folder / "h.ckpt.json").read_text())["source"]
    assert source["checkpoint"] == "boxes.pth"
    assert len(source["sha256"]) == 64
    assert main(["diff", "boxes.pth", "--against", "h.ckpt.json"]) == 0
    assert main(["lock", "h.ckpt.json", "-o", "i.ckpt.json"]) == 2
    assert "a lock file already" in capsys.readouterr().err
    assert main(["lock", "boxes.pth", "-o", "boxes.pth/h.ckpt.json"]) == 2
    assert "boxes.pth/h.ckpt.json can't be written: Not a directory" in capsys.readouterr().err
    assert main(["lock", "boxes.pth", "-o", "new/h.ckpt.json"]) == 0
    assert json.loads((folder / "new/h.ckpt.json").read_text())["source"]["checkpoint"] == "../boxes.pth"


@pytest.mark.filterwarnings("ignore")
def test_the_hash_of_several_files_is_that_of_their_list_wherever_they_are(tmp_path, monkeypatch, memory):
    monkeypatch.chdir(tmp_path)
    torch.distributed.checkpoint.save({"w": torch.ones(3), "n": 1}, checkpoint_id="step")
    assert main(["lock", "step", "-o", "a.ckpt.json", "--sha256"]) == 0
    listed = "".join(
        f"{hashlib.sha256(Path('step', name).read_bytes()).hexdigest()}  {name}\n"
        for name in (".metadata", "__0_0.distcp")
    )
    memory.put("step", "/bucket/step", recursive=True)
    assert main(["lock", "memory://bucket/step", "-o", "b.ckpt.json", "--sha256"]) == 0
    for name in ("a.ckpt.json", "b.ckpt.json"):
        found = json.loads(Path(name).read_text())["source"]["sha256"]
        assert found == hashlib.sha256(listed.encode()).hexdigest()


def test_lock_update(project):
    project.makepyfile(
        test_it="""
        import pytest
        from nets import V1
        @pytest.mark.ckpt_compat(model=V1)
        def test_it(): ...
    """
    )
    lock = str(project.path / "v1.ckpt.json")
    write_lock(lock, lock_of_checkpoint(open_checkpoint(str(project.path / "v1.pth")), lock))
    torch.save({"head.weight": torch.zeros(4, 9)}, project.path / "v1.pth")
    project.runpytest("--ckpt=v1.ckpt.json").assert_outcomes(passed=1)
    result = project.runpytest("--ckpt=v1.ckpt.json", "--ckpt-lock-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*locks rewritten: v1.ckpt.json (git diff shows how)"])
    assert json.loads((project.path / "v1.ckpt.json").read_text())["tensors"] == {
        "head.weight": ["float32", [4, 9]]
    }
    result = project.runpytest("--ckpt=v1.ckpt.json", "--ckpt-lock-update")
    result.stdout.fnmatch_lines(["*no lock changed"])
    result = project.runpytest("--ckpt=v1.ckpt.json", "--ckpt-lock-update", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (project.path / "v1.pth").unlink()
    result = project.runpytest("--ckpt=v1.ckpt.json", "--ckpt-lock-update")
    assert "v1.ckpt.json can't be made again: v1.pth does not exist" in "\n".join(result.errlines)


def test_a_test_that_asks_for_the_model_gets_it_on_meta(project):
    project.makepyfile(
        test_it="""
        import pytest
        from nets import V1
        @pytest.mark.ckpt_compat(model=V1, inputs=(3, 6))
        def test_it(ckpt_model):
            assert ckpt_model.head.weight.shape == (4, 8) and ckpt_model.head.weight.is_meta
            assert not ckpt_model.training
    """
    )
    lock = str(project.path / "v1.ckpt.json")
    write_lock(lock, lock_of_checkpoint(open_checkpoint(str(project.path / "v1.pth")), lock))
    result = project.runpytest("--ckpt=v1.ckpt.json")
    result.assert_outcomes(passed=1)
    told = "\n".join(result.outlines)
    assert "forward-cuda: rehearsed" in told
    assert "forward: skipped: a lock file has no values" in told


def test_a_lock_with_a_hash_tells_that_values_changed_under_equal_keys(folder, capsys, pytester, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["lock", "boxes.pth", "-o", "net.ckpt.json", "--sha256"]) == 0
    capsys.readouterr()
    assert main(["diff", "boxes.pth", "--against", "net.ckpt.json"]) == 0
    assert capsys.readouterr().out == "boxes.pth is the same as net.ckpt.json: 28 keys and values (sha256)\n"
    torch.manual_seed(7)
    torch.save(Boxes().state_dict(), "boxes.pth")
    assert main(["diff", "boxes.pth", "--against", "net.ckpt.json"]) == 1
    assert "net.ckpt.json: values changed" in capsys.readouterr().out
    assert main(["diff", "boxes.pth", "--against", "net.ckpt.json", "--json"]) == 1
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert change["change"] == "values"
    assert main(["diff", "boxes.pth", "--against", "boxes.ckpt.json"]) == 0  # a lock that notes no hash

    (pytester.path / "test_it.py").write_text(
        "import pytest\nfrom networks import Boxes\n@pytest.mark.ckpt_compat(model=Boxes)\ndef test_it(): ...\n"
    )
    result = pytester.runpytest(f"--ckpt={folder / 'net.ckpt.json'}", "--ckpt-lock-update", pytester.path)
    result.assert_outcomes(passed=1)
    assert "net.ckpt.json (values changed under equal keys)" in result.stdout.str()
