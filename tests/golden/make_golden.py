"""Makes the texts that users see, in this process: ``python make_golden.py PART FOLDER`` writes them to FOLDER.

Nothing but the public names of the package, the command and pytest are used, so that all else may move.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golden_cases import (
    CONTRASTED,
    OPERATORS,
    RUNS,
    SHOWN,
    TEST_FILES,
    UNREADABLE,
    WRONG,
    WRONG_INI,
    WRONG_TABLES,
)
from golden_texts import REPOSITORY, VIEWS, Sections, by_tag, command, compact, digest, masked, pytest_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent

# -- the parts: each gives names of files and their texts ----------------------------------------------------


def pairs() -> Iterator[tuple[str, str]]:
    """The command on each pair."""
    for name, table in _tables().items():
        arguments = _arguments(name, table)
        if arguments is None:
            continue
        yield f"pairs/{name}.txt", _viewed("check", *arguments)
    given = ("net.pth", "golden_models:Net", "--inputs", "2x6:int64<5")
    yield "pairs/forward-no-cuda.txt", _viewed("check", *given, "--require-cuda")


def _viewed(*arguments: str) -> str:
    """What the command prints at every width and length, and as JSON."""
    sections = Sections()
    for columns, *more in VIEWS:
        said = command(*arguments, *more, columns=columns)
        sections.add(", ".join([f"{columns} columns", *more]), said)
    content, exit_code, number = command(*arguments, "--json").rpartition("exit code")
    sections.add("--json", compact(content) + exit_code + number)
    return f"$ ckptcompat {' '.join(arguments)}\n\n{sections}"


def _tables() -> dict[str, dict[str, Any]]:
    return {table.pop("name"): table for table in tomllib.loads((HERE / "pairs.toml").read_text())["check"]}


def _arguments(name: str, table: dict[str, Any]) -> list[str] | None:
    """A table of ``ckptcompat.toml`` as options of the command; None where it has none for what the table says."""
    options = {"source_model": "--source-model", "optimizer": "--optimizer", "device": "--device"}
    options |= {"inputs": "--inputs", "state_dict_key": "--key"}
    arguments = [table.pop("ckpt"), table.pop("model")]
    for key, value in table.items():
        if key in options:
            arguments += [options[key], value]
        elif key == "protect":
            patterns = [value] if isinstance(value, str) else value
            arguments += [part for pattern in patterns for part in ("--protect", pattern)]
        elif key == "recipe":
            Path(f"{name}.toml").write_text("\n".join(map(_toml, value)))
            arguments += ["--recipe", f"{name}.toml"]
        else:
            return None
    return arguments


def _toml(step: dict[str, Any]) -> str:
    rows = (f"{key} = {value!r}" for key, value in step.items())
    return "\n".join(["[[recipe]]", *rows, ""])


def run() -> Iterator[tuple[str, str]]:
    """Pytest on all pairs at once, and its reports."""
    shutil.copy(HERE / "pairs.toml", "ckptcompat.toml")
    files = {"json": "run.json", "markdown": "run.md", "html": "run.html"}
    reports = [part for kind, path in files.items() for part in ("--ckpt-report", f"{kind}:{path}")]
    yield "pytest/run-80.txt", pytest_run("ckptcompat.toml", "--junitxml=run.xml", *reports)
    for columns, verbosity in ((80, "-v"), (120, "-vv")):
        said = pytest_run("ckptcompat.toml", verbosity, columns=columns)
        yield f"pytest/run-{columns}{verbosity}.txt", said
    for path, shown in {"run.json": compact, "run.md": str, "run.html": by_tag, "run.xml": by_tag}.items():
        yield f"pytest/{path}.txt", shown(masked(Path(path).read_text(encoding="utf-8")))
    sections = Sections()
    Path("ckptcompat.toml").unlink()
    for name, content in TEST_FILES.items():
        Path(name).write_text(content)
    for arguments in RUNS:
        sections.add(f"pytest {' '.join(arguments)}", pytest_run(*arguments))
    wrong = Path("wrong")
    wrong.mkdir()
    (wrong / "test_one.py").write_text("def test_one(): ...\n")
    for name, contents in {"ckptcompat.toml": WRONG_TABLES, "pytest.ini": WRONG_INI}.items():
        (wrong / "pytest.ini").write_text("[pytest]\n")
        for content in contents.split("---\n"):
            (wrong / name).write_text(content)
            said = pytest_run("wrong", "--rootdir=wrong", "--config-file=wrong/pytest.ini")
            sections.add(f"pytest with this {name}:\n{content}", said)
        (wrong / name).unlink()
    yield "pytest/other-runs.txt", str(sections)


def examples() -> Iterator[tuple[str, str]]:
    """Those that need no other package but numpy."""
    folders = ("decoder", "hub", "npz", "onet", "sharded", "vit")
    for name in folders:
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "examples" / name, Path("examples", name), ignore=leave)
    given = [f"examples/{name}" for name in folders]
    reports = ["--ckpt-report", "json:examples.json", "--ckpt-report", "markdown:examples.md"]
    text = pytest_run(*given, "--ckpt=examples/onet/net.pth", "-v", *reports)
    yield "examples/run-v.txt", text
    yield "examples/run.json.txt", compact(masked(Path("examples.json").read_text(encoding="utf-8")))
    yield "examples/run.md.txt", masked(Path("examples.md").read_text(encoding="utf-8"))
    two = ("examples/onet", "examples/hub", "--ckpt=examples/onet/net.pth")
    yield "examples/run-120.txt", pytest_run(*two, columns=120)
    for name in ("onet", "decoder", "vit"):
        sys.path.insert(0, str(Path("examples", name).resolve()))
    Path("onet.toml").write_text('[[recipe]]\nop = "tile"\nkey = "out2.*"\ndim = 0\n')
    onet = ("check", "examples/onet/net.pth", "onet:Net")
    yield "examples/onet-misfit.txt", _viewed(*onet)
    inputs = ("--inputs", "2x3x48x48", "--source-model", "onet:NetV1")
    yield "examples/onet-grown.txt", _viewed(*onet, "--recipe", "onet.toml", *inputs)
    sections = Sections()
    sections.run("show", "examples/onet/net.pth")
    sections.run("show", "examples/sharded/checkpoint", "--key", "model")
    sections.run("show", "examples/sharded/checkpoint")
    sections.run("show", "examples/decoder/sorter.pth")
    sections.run("lock", "examples/onet/net.pth", "-o", "onet.ckpt.json", "--sha256")
    sections.add("onet.ckpt.json", masked(Path("onet.ckpt.json").read_text(encoding="utf-8")))
    for end in ("safetensors", "pth"):
        sections.run("apply", *onet[1:], "--recipe", "onet.toml", "-o", f"grown.{end}")
        sections.add(f"bytes of grown.{end}", digest(Path(f"grown.{end}")))
    yield "examples/commands.txt", str(sections)


def commands() -> Iterator[tuple[str, str]]:
    """Help, show, diff, lock, apply, rules, and what can't be done."""
    sections = Sections()
    sections.run("--help")
    for name in ("show", "diff", "check", "lock", "apply", "rules"):
        sections.run(name, "--help")
    for wrong in ([], ["unknown"], ["check", "net.pth"], ["diff", "net.pth"], ["lock", "net.pth"]):
        sections.run(*wrong)
    yield "commands/help.txt", str(sections)
    sections = Sections()
    text = pytest_run("--help")
    begin = text.index("checkpoint compatibility:")
    sections.add("pytest --help", text[begin : text.index("\n\n", begin)])
    keys = re.findall(r"^  ckpt.*\n(?:   {2,}.*\n)*", text, re.MULTILINE)
    sections.add("pytest --help, ini keys", "".join(keys))
    sections.add("pytest --markers", "".join(re.findall(r".*ckpt_compat.*\n", pytest_run("--markers"))))
    documented = r"^(ckpt\w*) .*\n((?: {4}.*\n|\n(?=    ))+)"
    fixtures = re.findall(documented, pytest_run("--fixtures"), re.MULTILINE)
    sections.add("pytest --fixtures", "".join(f"{name}\n{text}" for name, text in fixtures))
    yield "commands/pytest-help.txt", str(sections)
    sections = Sections()
    for columns in (80, 120):
        sections.run("rules", columns=columns)
    sections.run("rules", "--json")
    yield "commands/rules.txt", str(sections)
    yield "commands/show.txt", str(_shown())
    sections = Sections()
    for new, old in CONTRASTED:
        for columns in (80, 120):
            sections.run("diff", new, "--against", old, columns=columns)
    sections.run("diff", "grown.pth", "--against", "biasless.pth", "--json")
    yield "commands/diff.txt", str(sections)
    yield "commands/written.txt", str(_written())
    sections = Sections()
    for wrong in WRONG:
        sections.run(*wrong)
    yield "commands/refused.txt", str(sections)


def _shown() -> Sections:
    sections = Sections()
    for name in SHOWN.split():
        for columns in (80, 120):
            sections.run("show", name, columns=columns)
    for name in ("two.pth", "prefixed.pth"):
        sections.run("show", name)
    for key in ("generator", "discriminator", "absent"):
        sections.run("show", "two.pth", "--key", key)
    sections.run("show", "words.pth", "--json")
    sections.run("show", "net.safetensors", "--json")
    for name in UNREADABLE.split():
        sections.run("show", name)
    sections.run("show", "net.pth", "--limit", "tensors=2")
    sections.run("show", "net.pth", "--limit", "tensors=many")
    sections.run("show", "net.pth", "--limit", "tensor=2")
    return sections


def _written() -> Sections:
    sections = Sections()
    recipes = {"grow": '[[recipe]]\nop = "tile"\nkey = "head.*"\ndim = 0\n', "none": ""}
    for name, text in recipes.items():
        Path(f"{name}.toml").write_text(text)
    for source in ("net.safetensors", "adam.pth", "words.pth", "shards", "golden_models:Words"):
        output = f"{Path(source).stem.replace(':', '-')}.ckpt.json"
        sections.run("lock", source, "-o", output)
        sections.add(f"{output}", masked(Path(output).read_text(encoding="utf-8")))
    sections.run("lock", "net.safetensors", "-o", "hashed.ckpt.json", "--sha256")
    sections.add("hashed.ckpt.json", masked(Path("hashed.ckpt.json").read_text(encoding="utf-8")))
    for source in ("net.safetensors", "net.pth", "shards", "adam.pth", "legacy.pth"):
        for end in ("safetensors", "pth"):
            output = f"{Path(source).name}.grown.{end}"
            sections.run("apply", source, "golden_models:Grown", "--recipe", "grow.toml", "-o", output)
            if Path(output).exists():
                sections.add(f"bytes of {output}", digest(Path(output)))
                sections.run("show", output)
    sections.run("apply", "net.pth", "golden_models:Wide", "--recipe", "grow.toml", "-o", "misfit.pth")
    sections.run("apply", "net.pth", "golden_models:Grown", "--recipe", "none.toml", "-o", "misfit.pth")
    sections.run("apply", "net.ckpt.json", "golden_models:Grown", "--recipe", "grow.toml", "-o", "misfit.pth")
    sections.run("apply", "net.pth", "golden_models:Grown", "--recipe", "grow.toml", "-o", "misfit.bin")
    sections.run("apply", "net.pth", "golden_models:Grown", "--recipe", "grow.toml", "-o", "nowhere/x.pth")
    return sections


# -- operators ---------------------------------------------------------------------------------------------


def operators() -> Iterator[tuple[str, str]]:
    """What every operator promises and makes, and how it is written."""
    import torch
    from golden_models import Table, exact

    import pytest_ckptcompat as package

    names = {name: getattr(package, name) for name in package.__all__}
    sections = Sections()
    for text, old, new in OPERATORS:
        recipe = package.Recipe(eval(text, {**names, "list": list}))
        Path("operator.toml").write_text(recipe.to_toml())
        Table.shapes = old
        torch.save(exact(OrderedDict(Table().state_dict())), "operator.pth")
        Table.shapes = new
        report = package.check(Table, "operator.pth", recipe=recipe, device="cpu")
        sections.add(text, f"{recipe!r}\n\n{recipe.to_toml()}\n{masked(str(report))}\n")
        sections.add(f"without {text}", command("check", "operator.pth", "golden_models:Table", "-vv"))
        made = Path("operator.safetensors")
        given = ("operator.pth", "golden_models:Table", "--recipe", "operator.toml")
        written = command("apply", *given, "-o", str(made))
        sections.add(f"made by {text}", written + (digest(made) if made.exists() else ""))
        made.unlink(missing_ok=True)
    yield "operators/all.txt", str(sections)


# -- the script --------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "pairs": pairs, "run": run, "examples": examples, "commands": commands, "operators": operators,
}  # fmt: skip


def main(parts: str, output: str) -> None:
    """Make the parts, comma separated, in a folder of their own; write what they give into `output`."""
    target = Path(output).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shutil.copy(HERE / "golden_models.py", ".")
        Path("pytest.ini").write_text("[pytest]\n")
        sys.path[:] = [str(Path.cwd()), *(path for path in sys.path if path != str(HERE))]
        import torch
        from golden_models import save

        torch.set_num_threads(1)
        save(Path.cwd())
        command("lock", "net.pth", "-o", "net.ckpt.json")
        # pytest and the plugin ask for it after each test, which would take a third of the time.
        gc.collect = lambda generation=2: 0
        for part in parts.split(","):
            for name, text in PARTS[part]():
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        os.chdir(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
