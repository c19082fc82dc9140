# Stage 5, reports: scores become tables, figures, claims and one page, in a folder of the configuration's own.
import re

from bulwark.config import paths

REPORT = paths.report(catalogue.name)


report: "../report/workflow.rst"


def reported(path, what, caption, study=None, **labels):
    """An output that `snakemake --report` shows, under `what` and the study that a function of wildcards names."""
    inside = {} if study is None else {"subcategory": lambda wildcards: study(wildcards)["study"]}
    return report(path, category=what, caption=f"../report/{caption}.rst", labels=labels, **inside)


rule make_table:
    input:
        scores=of(reports.table, "scores"),
        published=of(reports.table, "published"),
    output:
        csv=reported(f"{REPORT}/tables/{{table}}.csv", "Tables", "table", of(reports.table, "spec"), table="{table}"),
        markdown=f"{REPORT}/tables/{{table}}.md",
        latex=f"{REPORT}/tables/{{table}}.tex",
    log:
        f"results/logs/make_table/{catalogue.name}/{{table}}.log",
    localrule: True
    params:
        **decided(
            "make_table",
            spec=of(reports.table, "spec"),
            cells=of(reports.table, "cells"),
            missing=of(reports.table, "missing"),
            code=of(reports.table, "code"),
        ),
        command=catalogue.command,
    script:
        "../scripts/make_table.py"


rule make_figure:
    input:
        scores=of(reports.figure, "scores"),
        published=of(reports.figure, "published"),
    output:
        pdf=f"{REPORT}/figures/{{figure}}.pdf",
        png=reported(
            f"{REPORT}/figures/{{figure}}.png", "Figures", "figure", of(reports.figure, "spec"), figure="{figure}"
        ),
        csv=f"{REPORT}/figures/{{figure}}.csv",
    log:
        f"results/logs/make_figure/{catalogue.name}/{{figure}}.log",
    localrule: True
    params:
        **decided(
            "make_figure",
            spec=of(reports.figure, "spec"),
            cells=of(reports.figure, "cells"),
            missing=of(reports.figure, "missing"),
            code=of(reports.figure, "code"),
        ),
        command=catalogue.command,
    script:
        "../scripts/make_figure.py"


rule check_claims:
    """The verdict on every headline claim (made by the target claims)."""
    input:
        scores=of(reports.claims, "scores"),
    output:
        json=f"{REPORT}/claims.json",
        markdown=reported(f"{REPORT}/claims.md", "Claims", "claims", claims="all"),
    log:
        f"results/logs/check_claims/{catalogue.name}.log",
    localrule: True
    params:
        **decided(
            "check_claims",
            specs=of(reports.claims, "spec"),
            columns=reports.columns,
            cells=of(reports.claims, "cells"),
            code=of(reports.claims, "code"),
        ),
    script:
        "../scripts/check_claims.py"


rule write_results:
    """Everything measured as one tidy table: results.csv, results.parquet."""
    input:
        scores=of(reports.measured, "scores"),
    output:
        csv=reported(f"{REPORT}/results.csv", "Everything measured", "results", results="tidy table"),
        parquet=f"{REPORT}/results.parquet",
    log:
        f"results/logs/write_results/{catalogue.name}.log",
    localrule: True
    params:
        **decided(
            "write_results",
            cells=of(reports.measured, "cells"),
            code=of(reports.measured, "code"),
        ),
    script:
        "../scripts/write_results.py"


rule write_report:
    """One page with verdicts, figures, tables and where every number comes from: report.html."""
    input:
        claims=f"{REPORT}/claims.json",
        sources=of(reports.page, "sources"),
        published=of(reports.page, "published"),
    output:
        reported(paths.page(catalogue.name), "The page", "page", page="report.html"),
    log:
        f"results/logs/write_report/{catalogue.name}.log",
    localrule: True
    params:
        **decided(
            "write_report",
            studies=of(reports.page, "studies"),
            toys=of(reports.page, "toys"),
            columns=reports.columns,
            tables=of(reports.page, "tables"),
            figures=of(reports.page, "figures"),
            cells=of(reports.measured, "cells"),
            code=of(reports.page, "code"),
        ),
    script:
        "../scripts/write_report.py"


rule unknown_report:
    # Reached only by the path of a report that is not this configuration's: it says which is.
    input:
        reports.refuse_report,
    output:
        "results/reports/{report}/{shown}",
    wildcard_constraints:
        report=rf"(?!{re.escape(catalogue.name)}/)[^/]+",
        shown=".+",
