"""The ``ckptcompat`` command: output and exit codes."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from networks import Boxes, Words

from pytest_ckptcompat.cli import main
from pytest_ckptcompat.cli.command import COMMANDS

LOST = "{} is not a lock file and would be lost: name another file"
RECIPE = '[[recipe]]\nop = "tile"\nkey = "out2.*"\ndim = 0\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    torch.save(Boxes().state_dict(), "net.pth")
    torch.save({"model": Words().state_dict(), "epoch": 3}, "words.pth")
    (tmp_path / "grow.toml").write_text(RECIPE)
    return tmp_path


def test_show(folder, capsys):
    assert main(["show", "words.pth"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("words.pth: torch-zip, 17 tensors")
    assert "under 'model'" in text
    assert "embed.weight = head.weight" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_show_json(folder, capsys):
    assert main(["show", "words.pth", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["schema_version"] == 1
    assert content["path"] == "words.pth"
    rows = {row["key"]: row for row in content["tensors"]}
    assert rows["embed.weight"] == {
        "key": "embed.weight", "dtype": "float32", "shape": [11, 8], "nbytes": 352, "tied_to": None,
    }  # fmt: skip
    assert rows["head.weight"]["tied_to"] == "embed.weight"


@pytest.mark.parametrize("command", [["show", "none.pth"], ["diff", "none.pth", "--against", "net.pth"]])
def test_unreadable_is_2_and_one_line(folder, capsys, command):
    assert main(command) == 2
    assert capsys.readouterr().err == "ckptcompat: none.pth does not exist\n"


def test_diff(folder, capsys):
    state = Boxes(14).state_dict()
    del state["out1.bias"]
    state["aux.weight"] = torch.zeros(2)
    state["fc.0.bias"] = state["fc.0.bias"].double()
    torch.save(state, "new.pth")
    assert main(["diff", "net.pth", "--against", "net.pth"]) == 0
    assert "the same" in capsys.readouterr().out
    assert main(["diff", "new.pth", "--against", "net.pth"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("new.pth differs from net.pth: 1 added, 1 retyped, 1 removed, 2 reshaped")
    assert "(4, 8) f32  (14, 8) f32" in text
    assert main(["diff", "new.pth", "--against", "net.pth", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["same"] is False
    assert {"change": "removed", "key": "out1.bias", "old": "(1,) f32", "new": None} in content["changes"]


def test_check_without_and_with_the_recipe(folder, capsys):
    inputs, source = ("--inputs", "2x3x8x8"), ("--source-model", "networks:Boxes")
    arguments = ["check", "net.pth", "networks:Grown", *inputs, *source]
    assert main(arguments) == 1
    text = capsys.readouterr().out
    assert text.startswith("net.pth does not fit networks.Grown: 2 mismatched")
    assert '    op = "tile"\n    key = "out2.*"\n' in text
    assert "save it as a recipe file, and give that: --recipe FILE.toml" in text
    assert main([*arguments, "--recipe", "grow.toml"]) == 0
    text = capsys.readouterr().out
    assert "function kept" in text
    assert main([*arguments, "--recipe", "grow.toml", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is True
    stages = {stage["name"] for stage in content["stages"]}
    assert stages >= {"open", "recipe", "compare", "load", "verify", "forward"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "none.pth", "networks:Boxes"],
        ["check", "net.pth", "networks:None"],
        ["check", "net.pth", "no_such_module:Net"],
        ["check", "net.pth", "Boxes"],
        ["check", "net.pth", "networks:Boxes", "--recipe", "none.toml"],
        ["check", "net.pth", "networks:Boxes", "--device", "gpu"],
        ["check", "net.pth", "networks:Boxes", "--inputs", "2x3", "--inputs", "x=2x3"],
        ["check", "net.pth", "networks:Boxes", "--inputs", "twoxthree"],
        ["check", "net.pth", "networks:Boxes", "--optimizer", "torch.optim:SDG"],
        ["show", "net.pth", "--limit", "tensors"],
        ["show", "net.pth", "--key", "model"],
    ],
)
def test_what_could_not_be_checked_is_2(folder, capsys, arguments):
    assert main(arguments) == 2
    text = "".join(capsys.readouterr())
    assert "Traceback" not in text
    assert text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["check", "net.pth", "networks:Boxes", "--optimizer", "Adam"],
            "--optimizer 'Adam': write 'torch.optim:Adam'",
        ),
        (
            ["check", "net.pth", "networks:Boxes", "--max-memory", "9"],
            "--max-memory wants a size such as '24GB' or '80GiB', not str '9'",
        ),
        (
            ["check", "net.pth", "networks:Boxes", "--recipe", "grwo.toml"],
            "grwo.toml does not exist: did you mean grow.toml?",
        ),
        (["lock", "net.pth", "-o", "net.pth"], LOST.format("net.pth")),
        (["lock", "networks:Boxes", "-o", "words.pth"], LOST.format("words.pth")),
        (["show", ""], "a checkpoint's path is empty: name one (an unset variable?)"),
        (["diff", "net.pth", "--against="], "a checkpoint's path is empty: name one (an unset variable?)"),
    ],
)
def test_arguments_that_mean_nothing_are_told_once(folder, capsys, arguments, told):
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"ckptcompat: {told}\n")


def test_a_recipe_that_does_not_apply_is_1(folder, capsys):
    (folder / "typo.toml").write_text(RECIPE.replace("out2", "out3"))
    assert main(["check", "net.pth", "networks:Grown", "--recipe", "typo.toml"]) == 1
    text = capsys.readouterr().out
    assert "recipe-unused-op" in text
    assert "out2" in text


def test_a_limit_can_be_raised(folder, capsys):
    assert main(["show", "net.pth", "--limit", "tensors=3"]) == 2
    assert "tensors=3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["grown.pth", "grown.safetensors", "a/new/folder/grown.pth"])
def test_apply_writes_what_the_new_model_loads(folder, capsys, name):
    assert main(["apply", "net.pth", "networks:Grown", "--recipe", "grow.toml", "-o", name]) == 0
    assert f"{name}: 28 tensors" in capsys.readouterr().out
    assert main(["check", name, "networks:Grown"]) == 0
    old = torch.load("net.pth", weights_only=True)["out2.weight"]
    if name.endswith(".pth"):
        new = torch.load(name, weights_only=True)["out2.weight"]
    else:
        from safetensors.torch import load_file

        new = load_file(name)["out2.weight"]
    assert torch.equal(new, torch.cat([old, old, old, old[0:2]]))


@pytest.mark.parametrize(
    ("recipe", "output", "code"),
    [
        (RECIPE.replace("out2", "out3"), "o.pth", 1),
        (RECIPE.replace("out2.*", "out2.weight"), "o.pth", 1),
        (RECIPE, "net.pth/o.pth", 2),
        (RECIPE.replace("out2", "out3"), "none/o.pth", 1),
        (RECIPE, "o.zip", 2),
        ("recipe", "o.pth", 2),
    ],
)
def test_apply_that_fails_writes_nothing(folder, capsys, recipe, output, code):
    (folder / "r.toml").write_text(recipe)
    before = sorted(folder.iterdir())
    assert main(["apply", "net.pth", "networks:Grown", "--recipe", "r.toml", "-o", output]) == code
    assert sorted(folder.iterdir()) == before
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_versions_are_told_without_importing_torch(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(
        r"ckptcompat [\d.]+ \(Python 3[\d.]+\S*, torch \S+, pytest [\d.]+\S*\)\n", capsys.readouterr().out
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_option_has_help_and_the_exit_codes_are_told(command):
    assert all(settings["help"] for _, settings in command.OPTIONS)
    assert re.match(r"0 \w", command.EXITS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["check", "a", "b:c", "--receipe", "x.toml"],
            "unrecognized arguments: --receipe x.toml; did you mean --recipe?",
        ),
        (["show", "a", "--jso"], "unrecognized arguments: --jso; did you mean --json?"),
        (["chek", "a"], "did you mean check?"),
        (["diff", "a"], "the following arguments are required: --against"),
        (["diff", "a", "--agianst=b"], "unrecognized arguments: --agianst=b; did you mean --against?"),
        (["check", "a"], "MODEL is missing: package.module:name"),
        (["--versoin"], "unrecognized arguments: --versoin; did you mean --version?"),
        ([], "name one of init, show, diff, check,"),
    ],
)
def test_an_error_shows_the_usage_of_its_command_and_what_was_meant(capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    text = capsys.readouterr().err
    command = next((name for name in ("check", "show", "diff") if name in arguments), "")
    assert text.startswith(f"usage: {' '.join(['ckptcompat', command]).strip()} [-h]")
    assert told in text


def test_lock_says_what_it_wrote(folder, capsys):
    assert main(["lock", "net.pth", "-o", "net.ckpt.json"]) == 0
    assert capsys.readouterr().out == "net.ckpt.json: 28 keys of net.pth\n"


@pytest.mark.parametrize(
    ("variables", "painted"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_off_a_terminal(folder, capsys, monkeypatch, variables, painted):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["check", "net.pth", "networks:Grown"]) == 1
    assert ("\x1b[" in capsys.readouterr().out) is painted


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("term", "painted"), [("xterm", True), ("dumb", False)])
def test_colours_on_a_terminal(folder, monkeypatch, term, painted):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stdout", Terminal())
    main(["check", "net.pth", "networks:Grown"])
    assert ("\x1b[" in sys.stdout.getvalue()) is painted


@pytest.mark.parametrize(
    ("typed", "completed"), [("ch", "check"), ("check --rec", "--recipe"), ("show n", "net.pth")]
)
def test_the_shell_completes(folder, typed, completed):
    pytest.importorskip("argcomplete")
    line = f"ckptcompat {typed}"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    how = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": "found"}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | asked | how
    subprocess.run([sys.executable, "-m", "pytest_ckptcompat"], env=environment, check=False)
    assert (folder / "found").read_text().split() == [completed]


# -- an output that nobody reads, or that can't be written ----------------------------------------------------


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    ("shell", "codes"),
    [("| true", (1, 0, 0, 0)), (">&-", (1, 0, 0, 0)), ("> /dev/full", (2, 2, 2, 2))],
    ids=["broken pipe", "closed", "full"],
)
def test_the_verdict_survives_what_becomes_of_the_output(folder, buffered, shell, codes):
    commands = (
        "diff words.pth --against net.pth",
        "diff net.pth --against net.pth",
        "show --help",
        "--version",
    )
    for command, code in zip(commands, codes, strict=True):
        line = f'"{sys.executable}" -m pytest_ckptcompat {command} {shell}; exit ${{PIPESTATUS[0]}}'
        environment = os.environ | {"PYTHONUNBUFFERED": buffered, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (command, done)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert len(done.stderr.splitlines()) <= (1 if code == 2 else 0)


def test_an_interrupted_command_says_so_in_one_line(folder, capsys, monkeypatch):
    (folder / "slow.py").write_text("def net():\n    raise KeyboardInterrupt\n")
    assert main(["check", "net.pth", "slow:net"]) == 130
    assert capsys.readouterr() == ("", "ckptcompat: interrupted\n")


def test_the_report_of_a_check_is_written(folder, capsys):
    files = {"json": "out/r.json", "markdown": "r.md", "html": "r.html"}
    reports = [f"--report={kind}:{path}" for kind, path in files.items()]
    assert main(["check", "net.pth", "networks:Grown", *reports]) == 1
    (check,) = json.loads((folder / "out/r.json").read_text())["checks"]
    assert check["nodeid"] == "ckptcompat check net.pth networks.Grown"
    assert check["verdict"] in (folder / "r.md").read_text()
    assert "does not fit networks.Grown" in (folder / "r.html").read_text()
    before = (folder / "net.pth").read_bytes()
    assert main(["check", "net.pth", "networks:Grown", "--report=markdown:net.pth"]) == 2
    assert (folder / "net.pth").read_bytes() == before
    capsys.readouterr()
    assert main(["check", "net.pth", "networks:Grown", "--report", "xml:r"]) == 2
    assert (
        capsys.readouterr().err == "ckptcompat: --report 'xml:r': use json:PATH, markdown:PATH or html:PATH\n"
    )


def test_a_report_that_can_t_be_written_in_the_end(folder, capsys):
    (folder / "late.py").write_text("open('out', 'w').close()\nfrom networks import Boxes\n")
    assert main(["check", "net.pth", "late:Boxes", "--report=json:out/r.json"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ckptcompat: --report json:")
    assert "out/r.json was not written: " in told


def test_operators_of_a_conftest_are_known(folder, capsys):
    (folder / "conftest.py").write_text(
        "from pytest_ckptcompat import tile\nclass twice(tile): ...\ndef pytest_ckptcompat_operators(): return [twice]\n"
    )
    (folder / "twice.toml").write_text(RECIPE.replace("tile", "twice"))
    arguments = ["check", "net.pth", "networks:Grown", "--recipe", "twice.toml"]
    assert main(arguments) == 0
    (folder / "conftest.py").write_text("raise KeyError('pytest_ckptcompat_')\n")
    capsys.readouterr()
    assert main(arguments) == 2
    assert "conftest.py, which has hooks of ckptcompat, failed: KeyError" in capsys.readouterr().err
    (folder / "conftest.py").unlink()
    assert main(arguments) == 2
    assert "unknown op 'twice'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="a file that nobody can read, not even root")
def test_a_conftest_that_cant_be_read(folder, capsys):
    (folder / "conftest.py").symlink_to("/proc/self/mem")
    assert main(["check", "net.pth", "networks:Boxes"]) == 2
    assert capsys.readouterr().err.startswith("ckptcompat: conftest.py can't be read: ")
    assert main(["show", "net.pth"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the current folder can't be deleted")
@pytest.mark.parametrize(
    "command",
    ["check NET networks:Boxes", "lock NET -o net.json", "lock networks:Boxes -o net.json",
     "init networks:Boxes", "release v1 networks:Boxes", "operators"],
)  # fmt: skip
def test_the_current_folder_was_deleted(folder, capsys, monkeypatch, command):
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert main(command.replace("NET", str(folder / "net.pth")).split()) == 2
    assert capsys.readouterr() == ("", "ckptcompat: the current folder was deleted: change to another one\n")
    assert main(["show", str(folder / "net.pth")]) == 0


def test_formats_of_a_conftest_are_known(folder, capsys):
    (folder / "conftest.py").write_text(
        """
from pytest_ckptcompat.formats import Header, TensorSpec
def pytest_ckptcompat_open(file):
    return Header("own", {"a": TensorSpec("float32", (2,), (1,))}) if file.read_at(0, 3) == b"own" else None
"""
    )
    (folder / "net.own").write_bytes(b"own")
    assert main(["check", "net.own", "networks:Boxes"]) == 1
    assert "net.own does not fit networks.Boxes: 0 mismatched" in capsys.readouterr().out
    assert main(["show", "net.own"]) == 2  # it runs no code of the folder
    capsys.readouterr()


def test_rules(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "missing-key             error       the model needs a key that the checkpoint" in lines
    assert max(map(len, lines)) <= 80
    assert main(["rules", "--json"]) == 0
    rules = json.loads(capsys.readouterr().out)["rules"]
    assert all(rule["example"] and rule["remedy"] for rule in rules)
    assert main(["rules", "shape-mismatch"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("shape-mismatch (error)\nmeaning: A key has different shapes")
    assert "example: `out2 = Linear(256, 4)` became" in text
    assert "remedy:  Grow the tensor" in text
    assert max(map(len, text.splitlines())) <= 80
    assert main(["rules", "shape-missmatch"]) == 2
    told = "ckptcompat: no rule 'shape-missmatch': did you mean 'shape-mismatch'?\n"
    assert capsys.readouterr() == ("", told)
    assert {"id": "shape-mismatch", "severity": "error"}.items() <= rules[2].items()
