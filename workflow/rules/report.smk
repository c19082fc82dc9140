# Stage 5, reports: scores become tables, figures, claims and one page.


rule make_table:
    input:
        scores=reports.table_scores,
        published=reports.table_published,
    output:
        csv="results/tables/{table}.csv",
        markdown="results/tables/{table}.md",
        latex="results/tables/{table}.tex",
    log:
        "results/logs/make_table/{table}.log",
    localrule: True
    params:
        spec=reports.table_spec,
        cells=reports.table_cells,
        code=reports.table_code,
    script:
        "../scripts/make_table.py"


rule make_figure:
    input:
        scores=reports.figure_scores,
        published=reports.figure_published,
    output:
        pdf="results/figures/{figure}.pdf",
        png="results/figures/{figure}.png",
    log:
        "results/logs/make_figure/{figure}.log",
    localrule: True
    params:
        spec=reports.figure_spec,
        cells=reports.figure_cells,
        code=reports.figure_code,
    script:
        "../scripts/make_figure.py"


rule check_claims:
    """The verdict on every headline claim (made by the target claims)."""
    input:
        scores=reports.claim_scores,
    output:
        json="results/claims.json",
        markdown="results/claims.md",
    log:
        "results/logs/check_claims.log",
    localrule: True
    params:
        specs=reports.claim_specs,
        cells=reports.claim_cells,
        code=reports.claim_code,
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
        studies=reports.studies,
        captions=reports.captions,
        code=reports.report_code,
    script:
        "../scripts/write_report.py"
