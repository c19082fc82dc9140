# Stage 5, reports: scores become tables, figures, claims and one page.


rule make_table:
    input:
        scores=of(reports.table, "scores"),
        published=of(reports.table, "published"),
    output:
        csv="results/tables/{table}.csv",
        markdown="results/tables/{table}.md",
        latex="results/tables/{table}.tex",
    log:
        "results/logs/make_table/{table}.log",
    localrule: True
    params:
        **decided(
            "make_table",
            spec=of(reports.table, "spec"),
            cells=of(reports.table, "cells"),
            code=of(reports.table, "code"),
        ),
    script:
        "../scripts/make_table.py"


rule make_figure:
    input:
        scores=of(reports.figure, "scores"),
        published=of(reports.figure, "published"),
    output:
        pdf="results/figures/{figure}.pdf",
        png="results/figures/{figure}.png",
    log:
        "results/logs/make_figure/{figure}.log",
    localrule: True
    params:
        **decided(
            "make_figure",
            spec=of(reports.figure, "spec"),
            cells=of(reports.figure, "cells"),
            code=of(reports.figure, "code"),
        ),
    script:
        "../scripts/make_figure.py"


rule check_claims:
    """The verdict on every headline claim (made by the target claims)."""
    input:
        scores=of(reports.claims, "scores"),
    output:
        json="results/claims.json",
        markdown="results/claims.md",
    log:
        "results/logs/check_claims.log",
    localrule: True
    params:
        **decided(
            "check_claims",
            specs=of(reports.claims, "spec"),
            cells=of(reports.claims, "cells"),
            code=of(reports.claims, "code"),
        ),
    script:
        "../scripts/check_claims.py"


rule write_report:
    """One page with the tables, figures and claims: results/report.html."""
    input:
        claims="results/claims.json",
        tables=reports.report_tables,
        figures=reports.report_figures,
        scores=reports.scores,
    output:
        "results/report.html",
    log:
        "results/logs/write_report.log",
    localrule: True
    params:
        **decided(
            "write_report",
            studies=reports.studies,
            captions=reports.captions,
            code=reports.report_code,
        ),
    script:
        "../scripts/write_report.py"
