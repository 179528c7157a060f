"""The first lines of a child process: today's tool, and the modules of the tree at REF. Run as a script.

Nothing of the package is imported before the search path is set, or the tool would come from the tree.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def _main(request_file: str) -> None:
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    sys.path[:] = request["path"]
    _follow_editable_installs(request["root"], request["tree"])
    sys.path.insert(0, request["tool"])
    job = importlib.import_module(request["job"])
    sys.path.remove(request["tool"])
    answer = job.answer(request["arguments"])
    _reject_todays_files(answer, request)
    part = Path(f"{request['answer']}.part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(request["answer"])
    os._exit(0)  # whatever threads and exit handlers the model's code has left


def _follow_editable_installs(root: str, tree: str) -> None:
    """Let the finders of editable installs (setuptools) look in the tree instead of today's folder."""
    for finder in sys.meta_path:
        mapping: dict[str, Any] = getattr(sys.modules.get(getattr(finder, "__module__", "")), "MAPPING", {})
        for name, path in mapping.items():
            if isinstance(path, str) and Path(path).is_relative_to(root):
                mapping[name] = str(Path(tree, Path(path).relative_to(root)))


def _reject_todays_files(answer: dict[str, Any], request: dict[str, Any]) -> None:
    """What was imported from today's working tree would make the comparison one of today with today."""
    root, spared = Path(request["root"]), (*map(Path, request["spared"]), Path(request["tree"]))
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not Path(file).is_relative_to(root):
            continue
        if not any(Path(file).is_relative_to(each) for each in spared):
            answer.clear()
            answer["error"] = f"{name} was imported from today's {Path(file).relative_to(root)}"
            return


if __name__ == "__main__":
    _main(sys.argv[1])
