"""What a paper states for a run of a study, and the run's control."""

from functools import lru_cache

from launcher.evaluation.headline import Headline, Known
from launcher.files import RUNS
from launcher.run.folder import EVALUATION, Run, is_run
from launcher.studies.plan import run_of
from launcher.studies.table import Row, Study, load_study, studies


def find_known(headline: Headline) -> Known:
    """The paper's number for the row of this headline, and the run of the study's control with the same seed."""
    paper, control = None, None
    for study, row, seed in list_rows().get(headline.evaluation["run"], ()):
        if row.paper is not None and (row.source, row.figure) == (headline.source, headline.figure):
            paper = row.paper / 100
        if study.control is not None:
            folder = run_of(study, study.row(study.control).run, seed)
            control = folder if is_run(folder) and (folder / EVALUATION).is_file() else control
    return Known(paper, Run(control) if control else None)


@lru_cache(maxsize=1)
def list_rows() -> dict[str, list[tuple[Study, Row, int]]]:
    """{name of a run: the rows of all studies that read it, each with the seed}."""
    found: dict[str, list[tuple[Study, Row, int]]] = {}
    for study in map(load_study, studies()):
        for row in study.rows:
            for seed in study.seeds:
                name = str(run_of(study, row.run, seed).relative_to(RUNS))
                found.setdefault(name, []).append((study, row, seed))
    return found
