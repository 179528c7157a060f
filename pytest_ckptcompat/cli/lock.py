"""The command ``ckptcompat lock``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from .options import READING, flags, given_flags, make_importable, opened, option, parsed_limits, place
from .output import OK, Outcome

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pytest_ckptcompat.checks.past_checkpoint import Question

SUMMARY = "write keys, shapes and dtypes to a small lock file"
EXITS = "0 written, 2 not written"

CALL = ("inputs", "method", "model_args")
OPTIONS = (
    option(
        "source", metavar="CKPT_OR_MODEL", help="a checkpoint, or package.module:name of what gives a model"
    ),
    option("-o", "--output", required=True, metavar="net.ckpt.json", help="the lock file"),
    option("--sha256", action="store_true", help="with the hash of the file's bytes: reads all of it"),
    option(
        "--model",
        metavar="MODEL",
        help="the model of CKPT: with --inputs, what it computes on synthetic values is recorded",
    ),
    *flags(CALL),
    option("--at", metavar="REF", help="lock MODEL as it stood at a commit of git"),
    option(
        "--no-metadata", action="store_true", help="without the plain values that stand beside the weights"
    ),
    *READING,
)


def run(options: argparse.Namespace) -> Outcome:
    """Write the lock."""
    from pytest_ckptcompat.checkpoint.lock_writer import write_lock
    from pytest_ckptcompat.core.redaction import public
    from pytest_ckptcompat.files.paths import GIT, display, is_reference

    at, _, model = options.source.rpartition("#")
    if is_reference(at) and ":" in model:  # git:REF#MODEL
        if options.at:
            raise ValueError(f"--at is for a model, and {options.source} names its commit already")
        options.source, options.at = model, at.removeprefix(GIT)
    content, notes = _of_model(options) if _is_model(options.source) else _of_checkpoint(options)
    write_lock(options.output, content)
    count = len(content["tensors"])
    keys = f"{count:,} key{'' if count == 1 else 's'}"
    hidden = " (noted without its user and query)" if public(options.source) != options.source else ""
    told = [f"{display(options.output)}: {keys} of {display(options.source)}{hidden}", *notes]
    return Outcome(OK, "\n".join([*told, *recorded(content)]))


def _of_model(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from pytest_ckptcompat.checks.past_checkpoint import lock_of_commit

    if options.model:
        raise ValueError(f"--model is for a checkpoint, and {options.source} is a model")
    make_importable()
    question = call(options, options.source, options.source)
    if options.at:
        return lock_of_commit(options.at, question, place(options)), []
    from pytest_ckptcompat.checks.locks import lock_of_model

    return lock_of_model(question, parsed_limits(options)), []


def _of_checkpoint(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from pytest_ckptcompat.checkpoint.lock_writer import lock_of_checkpoint, with_more
    from pytest_ckptcompat.checkpoint.plain_metadata import arguments_at, metadata

    if options.at:
        raise ValueError("--at is for a model: write lock package.module:name --at REF")
    question = call(options, options.source, options.model)
    if bool(options.model) != (question.inputs is not None):
        raise ValueError("--model and --inputs belong together: what the model computes for them is recorded")
    ckpt = opened(options.source, options)
    plain, large = ({}, []) if options.no_metadata else metadata(ckpt)
    content = lock_of_checkpoint(ckpt, options.output, sha256=options.sha256, plain=plain)
    notes = [f"metadata: {', '.join(plain)}"] if plain else []
    notes += [f"too large for its metadata: {', '.join(large)}"] if large else []
    if question.inputs is None:
        return content, notes
    from pytest_ckptcompat.checks.locks import behaviour_of_checkpoint

    make_importable()
    if isinstance(question.model_args, str):
        arguments = arguments_at(ckpt.contents, question.model_args.removeprefix("ckpt:"))
        question = replace(question, model_args=arguments)
    return with_more(content, behaviour=behaviour_of_checkpoint(ckpt, question)), notes


def call(options: argparse.Namespace, source: str, model: str | None) -> Question:
    """Return what is asked of a model. Its arguments may still be the path to a dict in the checkpoint."""
    from pytest_ckptcompat.checks.argument_types import AUTO, method, model_args
    from pytest_ckptcompat.checks.past_checkpoint import Question
    from pytest_ckptcompat.forward.inputs import Inputs

    given = given_flags(options, CALL)
    inputs, arguments = given.get("inputs"), given.get("model_args") or {}
    if arguments:
        model_args("--model-args", arguments)
    if isinstance(arguments, str) and _is_model(source):
        raise ValueError(f"--model-args {arguments} reads a checkpoint, and {source} is a model")
    if inputs is not None and inputs != AUTO:
        inputs = Inputs.parse(inputs).texts
    return Question(model, arguments, method("--method", given.get("method", "forward")), inputs)


def recorded(content: dict[str, Any]) -> list[str]:
    """Return the note on the recorded outputs."""
    behaviour = content.get("behaviour")
    if behaviour is None:
        return []
    if why := behaviour.get("uncompared"):
        return [f"outputs: none to compare with, {why}"]
    count, note = len(behaviour["outputs"]), behaviour.get("note", "")
    return [f"outputs: {count} on synthetic values{f', {note}' if note else ''}"]


def _is_model(source: str) -> bool:
    from pytest_ckptcompat.files.paths import is_reference

    checkpoint = "://" in source or is_reference(source) or os.path.lexists(source)
    return ":" in source and not checkpoint
