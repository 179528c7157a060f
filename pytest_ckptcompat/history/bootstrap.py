"""The script that starts a child process with today's tool and the modules of the tree at REF.

It imports nothing from this package before the search path is set, or the tool would come from the tree.
"""

import filecmp
import importlib
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def _main(request_file: str) -> None:
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    _end_with_parent(str(Path(request_file).parent), str(Path(request["tree"]).parent))
    sys.path[:] = request["path"]
    _follow_editable_installs(request["root"], request["tree"])
    opened = _watched(request["root"], request["tool"])
    folder = str(Path(request["tool"]).parent)
    sys.path.insert(0, folder)
    job = importlib.import_module(request["job"])
    sys.path.remove(folder)
    answer = job.answer(request["arguments"])
    if told := _todays_file(request, opened):
        answer = {"error": told}
    part = Path(f"{request['answer']}.part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(request["answer"])
    os._exit(0)  # despite threads and exit handlers of the model's code


def _end_with_parent(*folders: str) -> None:
    """End this process, all that it started and its folders when the process that asked is gone.

    That one holds the other end of the standard input, and closes it even if it is killed.
    """
    asking, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)

    def wait() -> None:
        os.read(asking, 1)  # nothing is ever written
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _follow_editable_installs(root: str, tree: str) -> None:
    """Let the finders of editable installs look in the tree instead of today's folder.

    setuptools keeps its table of folders in the finder's module, others in the finder.
    """

    def moved(place: Any) -> Any:
        if isinstance(place, list):
            return list(map(moved, place))
        if isinstance(place, str) and os.path.isabs(place) and Path(place).is_relative_to(root):  # noqa: PTH117
            return str(Path(tree, Path(place).relative_to(root)))
        return place

    for finder in sys.meta_path:
        module = sys.modules.get(getattr(finder, "__module__", ""))
        for owner in (module, type(finder), finder):
            for table in list(getattr(owner, "__dict__", {}).values()):
                if isinstance(table, dict) and table is not sys.modules:
                    table.update({name: moved(place) for name, place in table.items()})


def _watched(root: str, tool: str) -> set[str]:
    """Record the files of today's working tree that are opened from now on, except by the tool."""
    opened: set[str] = set()

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0] if event == "open" else None
        if not isinstance(path, str) or not path.startswith(root + os.sep):
            return
        if not sys._getframe(1).f_code.co_filename.startswith(tool):
            opened.add(path)

    sys.addaudithook(hear)
    return opened


def _todays_file(request: dict[str, Any], opened: set[str]) -> str:
    """Return what was taken from today's working tree (today compared with itself), or ``""``.

    No module may be. Another file may, unless the commit has other bytes in its place.
    """
    root, tree = Path(request["root"]), Path(request["tree"])
    spared = [*map(Path, (*request["installed"], request["tool"])), tree, root / ".git"]

    def todays(file: object) -> bool:
        path = Path(file) if isinstance(file, str) else tree
        return path.is_relative_to(root) and not any(path.is_relative_to(each) for each in spared)

    for name, module in sorted(sys.modules.items()):
        if todays(file := getattr(module, "__file__", "")):
            return f"{name} was imported from today's {Path(file).relative_to(root)}"
    for file in filter(todays, sorted(opened)):
        then = tree / Path(file).relative_to(root)
        if then.is_file() and Path(file).is_file() and not filecmp.cmp(file, then, shallow=False):
            return f"its code read today's {Path(file).relative_to(root)}, which it names by its whole path"
    return ""


if __name__ == "__main__":
    _main(sys.argv[1])
