"""Run in a child process that imports a past commit's code: make its lock, or record its behaviour."""

from __future__ import annotations

import sys
from typing import Any

from pytest_ckptcompat.core.errors import CheckpointError, ModelError
from pytest_ckptcompat.core.imports import imported
from pytest_ckptcompat.core.limits import Limits

from .past_checkpoint import Question


def answer(arguments: dict[str, Any]) -> dict[str, Any]:
    """Answer the parent process: with a lock, a behaviour, the result of a check, or ``{"error": text}``.

    Args:
        arguments: the attributes of a ``question`` and the ``limits``. With ``values`` (``path``,
            ``state_dict_key``), the model runs on the values of that checkpoint. With ``check``, a checkpoint
            is checked against the model, by `first_misfit.answer_of`.
    """
    sys.dont_write_bytecode = True
    limits, question = Limits(**arguments["limits"]), Question(**arguments["question"])
    try:
        _import(question.model)  # reports a wrong name before torch is imported
        if "check" in arguments:
            from .first_misfit import answer_of

            return answer_of(question.model, limits, **arguments["check"])
        if "values" in arguments:
            return {"behaviour": _on_values(question, limits, **arguments["values"])}
        from .locks import lock_of_model

        return {"lock": lock_of_model(question, limits)}
    except (CheckpointError, ModelError) as error:
        return {"error": str(error)}


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


def _on_values(question: Question, limits: Limits, path: str, state_dict_key: str | None) -> dict[str, Any]:
    """Run the past model on a batch, loaded with a checkpoint, and return its outputs."""
    from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
    from pytest_ckptcompat.models.blueprint import blueprint
    from pytest_ckptcompat.models.skeleton import LARGE
    from pytest_ckptcompat.tensors import plain, synthetic
    from pytest_ckptcompat.tensors.footprint import weights
    from pytest_ckptcompat.verification.behaviour import record
    from pytest_ckptcompat.verification.source_model import misfit
    from pytest_ckptcompat.verification.wide_run import Trial

    made = blueprint(question.model, question.model_args)
    ckpt = open_checkpoint(path, state_dict_key, limits=limits)
    schema = made.schema()
    if wrong := misfit(schema, ckpt.meta()):
        raise CheckpointError(wrong)
    state = ckpt.stored()
    batch = synthetic.inputs(plain.unpacked(question.batch))
    load = lambda model: model.load_state_dict(state, strict=False)  # noqa: E731
    return record(Trial(made.build, load, batch, question.method, weights(schema) > LARGE)).to_json()
