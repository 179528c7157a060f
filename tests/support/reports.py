"""A report that several forms of it are tested on."""

from __future__ import annotations

from pytest_ckptcompat.core.findings import Promise, Stage, finding
from pytest_ckptcompat.report.advice import RecipeText
from pytest_ckptcompat.report.report import Report

ONET = Report(
    "net.pth",
    "onet.Net",
    mismatched=[("out2.weight", (4, 256), (14, 256))],
    matched=62,
    total=63,
    findings=[finding("shape-mismatch", "out2.weight", "(4, 256) f32", "(14, 256) f32")],
    promises=[Promise("function kept", "unchecked", "no source_model declared")],
    stages=[Stage("open", "passed", "torch zip, 63 tensors")],
    suggestion=RecipeText(
        'Recipe(tile("out2.*", dim=0))', '[[recipe]]\nop = "tile"\nkey = "out2.*"\ndim = 0\n'
    ),
)
