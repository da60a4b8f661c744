"""The report at the end of a run, of as many images as a small share of the run's time allows."""

from __future__ import annotations

from shlex import quote

from saccade.base.errors import UserError
from saccade.evaluation.report.findings import find
from saccade.evaluation.report.page import write_report
from saccade.runs.session import Session

SHARE = 0.1  # of the training time, at most
MOST, LEAST = 2_000, 100  # images of the map
LAYING_OUT = 0.015  # seconds an image: decoded, made small, laid out by t-SNE, on two slow cores


def report_after(session: Session, seconds: float) -> str:
    """Write report.html of a run that trained for so long, and say so, or why not: one line."""
    out = session.config.out
    if session.config.flags.get("no_report"):
        return f"report: none, as asked; saccade report {quote(str(out))} makes it"
    recipe, source = session.config.recipe, session.source
    trained = max(1, session.steps * recipe.batch_size)
    images = min(MOST, len(source), int(SHARE * seconds / (LAYING_OUT + seconds / trained / 3)))
    if images < min(LEAST, max(3, len(source))):
        return f"report: saccade report {quote(str(out))} makes one; the run was too short to spend its time on it"
    views, learner = recipe.views, session.learner
    try:
        found = find(
            learner.backbone,
            source,
            recipe.image_size,
            views.mean,
            views.std,
            images,
            session.accelerator.device,
            session.config.workers,
        )
        shown = f"{len(found.names):,} of {found.total:,} images"
        again = f"saccade report {quote(str(out))} --images N"
        return f"report: {write_report(out, found)}, with {shown} ({again} takes others)"
    except (UserError, OSError, ValueError, RuntimeError, MemoryError) as error:  # the run itself is whole
        return f"report: none ({' '.join(str(error).split())[:200]}); saccade report {quote(str(out))} tries again"
