# Stage 5, reports: scores become tables, figures, claims and one page.


def cells_of(study, names):
    """Every measurement of these benchmarks and analyses in a study, with the path of its scores."""
    keys = ("model", "recipe", "seed", "benchmark", "scores")
    cells = [(cell, scores_path(*cell)) for cell in catalogue.cells(study)]
    cells += [(cell, analysis_path(*cell)) for cell in catalogue.analysis_cells(study)]
    return [dict(zip(keys, (*cell, path), strict=True)) for cell, path in cells if cell[-1] in names]


def entity_of(kind):
    """The table or figure that a path asks for."""
    return lambda wildcards: catalogues.find(getattr(catalogue, f"{kind}s"), wildcards[kind], kind, f"results/{kind}s/")


def cells_for(kind):
    """The measurements that a table or figure shows: of the recipes it names, or of all."""

    def of(wildcards):
        entity = entity_of(kind)(wildcards)
        checking.check_measured(catalogue, entity, f"{kind}_{wildcards[kind]}")
        named = entity.recipes()
        cells = cells_of(entity.study, entity.benchmarks())
        return [cell for cell in cells if not named or cell["recipe"] in named]

    return explained(of)


def files_of(cells):
    """The files behind cells: scores, and their rows per record."""
    scores = [cell["scores"] for cell in cells]
    return scores + [path.removesuffix(".json") + ".records.jsonl" for path in scores]


def numbers_published(kind):
    """The file of config/published that a table or figure compares with, if it names one."""

    def of(wildcards):
        name = entity_of(kind)(wildcards).published
        return ROOT / "config" / "published" / f"{name}.yaml" if name else []

    return explained(of)


def claims_asked_for():
    """Every claim of every study, with the measurements it speaks of."""
    asked = {}
    for name in sorted({name for study in catalogue.studies.values() for name in study.claims}):
        claim = catalogue.claims[name]
        cells = cells_of(claim.study, claim.benchmarks())
        asked[name] = [cell for cell in cells if cell["recipe"] in claim.recipes()]
    return asked


def targets_of(*studies):
    """The tables and figures of studies."""
    paths = []
    for name in studies:
        study = catalogue.studies[name]
        paths += [f"results/tables/{table}.{ending}" for table in study.tables for ending in ("csv", "md", "tex")]
        paths += [f"results/figures/{figure}.{ending}" for figure in study.figures for ending in ("pdf", "png")]
    return paths


def cells_of_studies():
    return [cell for study in catalogue.studies for cell in catalogue.cells(study)]


rule make_table:
    input:
        scores=lambda wildcards: files_of(cells_for("table")(wildcards)),
        published=numbers_published("table"),
    output:
        csv="results/tables/{table}.csv",
        markdown="results/tables/{table}.md",
        latex="results/tables/{table}.tex",
    log:
        "results/logs/make_table/{table}.log",
    localrule: True
    params:
        spec=explained(lambda wildcards: entity_of("table")(wildcards).model_dump(mode="json")),
        cells=cells_for("table"),
        code=digests.code_digest("bulwark.reporting.tables:make_table"),
    script:
        "../scripts/make_table.py"


rule make_figure:
    input:
        scores=lambda wildcards: files_of(cells_for("figure")(wildcards)),
        published=numbers_published("figure"),
    output:
        pdf="results/figures/{figure}.pdf",
        png="results/figures/{figure}.png",
    log:
        "results/logs/make_figure/{figure}.log",
    localrule: True
    params:
        spec=explained(lambda wildcards: entity_of("figure")(wildcards).model_dump(mode="json")),
        cells=cells_for("figure"),
        code=explained(lambda wildcards: digests.figure_digest(entity_of("figure")(wildcards).kind)),
    script:
        "../scripts/make_figure.py"


rule check_claims:
    """The verdict on every headline claim (made by the target claims)."""
    input:
        scores=sorted({path for cells in claims_asked_for().values() for path in files_of(cells)}),
    output:
        json="results/claims.json",
        markdown="results/claims.md",
    log:
        "results/logs/check_claims.log",
    localrule: True
    params:
        specs={name: catalogue.claims[name].model_dump(mode="json") for name in claims_asked_for()},
        cells=claims_asked_for(),
        code=digests.code_digest("bulwark.reporting.claims"),
    script:
        "../scripts/check_claims.py"


rule write_report:
    """One page with the tables, figures and claims: results/report.html."""
    input:
        claims="results/claims.json",
        tables=[path for path in targets_of(*catalogue.studies) if path.endswith(".md")],
        figures=[path for path in targets_of(*catalogue.studies) if path.endswith(".png")],
        scores=sorted({scores_path(*cell) for cell in cells_of_studies()}),
    output:
        "results/report.html",
    log:
        "results/logs/write_report.log",
    localrule: True
    params:
        studies={name: study.model_dump(mode="json") for name, study in catalogue.studies.items()},
        captions={name: figure.caption for name, figure in catalogue.figures.items()},
        code=digests.code_digest("bulwark.reporting.report:make_report"),
    script:
        "../scripts/write_report.py"
