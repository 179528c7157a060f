"""Run in a child process that imports a past commit's code: make its lock, or record its behaviour."""

from __future__ import annotations

import sys
from typing import Any

from pytest_ckptcompat.core.errors import CheckpointError, ModelError
from pytest_ckptcompat.core.imports import imported
from pytest_ckptcompat.core.limits import Limits


def answer(arguments: dict[str, Any]) -> dict[str, Any]:
    """Answer the parent process.

    Args:
        arguments: ``model``, ``model_args``, ``inputs`` or ``batch`` (or None), ``method``, ``most`` and
            ``limits``. With ``values`` (``path``, ``state_dict_key``), the model runs on the values of that
            checkpoint.

    Returns:
        ``{"lock": content}``, ``{"behaviour": ...}`` if values were named, the result of
        `first_misfit.answer_of` if a checkpoint is to be checked, or ``{"error": text}``.
    """
    sys.dont_write_bytecode = True
    limits = Limits(**arguments["limits"])
    try:
        _import(arguments["model"])  # reports a wrong name before torch is imported
        if "check" in arguments:
            from .first_misfit import answer_of

            return answer_of(arguments)
        if values := arguments.get("values"):
            return {"behaviour": _on_values(arguments, values, limits)}
        from .locks import lock_of_model

        lock = lock_of_model(
            arguments["model"],
            arguments["model_args"],
            inputs=arguments["inputs"],
            batch=arguments["batch"],
            method=arguments["method"],
            limits=limits,
            most=arguments["most"],
        )
    except (CheckpointError, ModelError) as error:
        return {"error": str(error)}
    return {"lock": lock}


def _import(model: str) -> None:
    """Import a model; where its module is missing, the folders that were searched tell nobody anything."""
    try:
        imported(model)
    except ModelError as error:
        missing = getattr(error.__cause__, "name", None) or ""
        if isinstance(error.__cause__, ModuleNotFoundError) and f"{model}.".startswith(
            (f"{missing}:", f"{missing}.")
        ):
            raise ModelError(f"there is no module {missing!r}") from None
        raise ModelError(str(error).removeprefix(f"{model}: ")) from None


def _on_values(arguments: dict[str, Any], values: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Run the past model on a batch, loaded with a checkpoint, and return its outputs."""
    from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
    from pytest_ckptcompat.models.blueprint import blueprint
    from pytest_ckptcompat.tensors import plain, synthetic
    from pytest_ckptcompat.verification.behaviour import record
    from pytest_ckptcompat.verification.source_model import misfit
    from pytest_ckptcompat.verification.wide_run import Trial

    made = blueprint(arguments["model"], arguments["model_args"])
    ckpt = open_checkpoint(values["path"], values["state_dict_key"], limits=limits)
    if wrong := misfit(made.schema(), ckpt.meta()):
        raise CheckpointError(wrong)
    state = ckpt.stored()
    batch = synthetic.inputs(plain.unpacked(arguments["batch"]))
    load = lambda model: model.load_state_dict(state, strict=False)  # noqa: E731
    return record(Trial(made.build, load, batch, arguments["method"])).to_json()
