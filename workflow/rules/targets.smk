# The menu: what one asks for by name (snakemake --list-target-rules).


rule data:
    """All records, downloaded and prepared."""
    input:
        reports.records,
    localrule: True


rule models:
    """All checkpoints: every recipe on every model, at every seed."""
    input:
        reports.checkpoints,
    localrule: True


rule evaluations:
    """All scores."""
    input:
        reports.scores,
    localrule: True


rule analyses:
    """All analyses of what trainings wrote down."""
    input:
        reports.analyses,
    localrule: True


rule claims:
    """Every headline claim, checked: claims.md in the folder of the configuration, results/reports/<name>/."""
    input:
        rules.check_claims.output,
    localrule: True


if "cross" in catalogue.studies and plan_reports.shown(catalogue, "cross"):

    rule cross:
        """Every defense under every attack on every family of benchmarks: table, ranking and figure."""
        input:
            plan_reports.shown(catalogue, "cross"),
        localrule: True


for _name, _entity in catalogue.tables.items():

    rule:
        name:
            f"table_{_name}"
        input:
            paths.table(catalogue.name, _name),
        localrule: True

    workflow.get_rule(f"table_{_name}").docstring = f"Table: {_entity.title}."


for _name, _entity in catalogue.figures.items():

    rule:
        name:
            f"figure_{_name}"
        input:
            paths.figure(catalogue.name, _name),
        localrule: True

    workflow.get_rule(f"figure_{_name}").docstring = f"Figure: {_entity.title}."


for _name, _entity in catalogue.studies.items():
    if not plan_reports.of_study(catalogue, _name):  # an overlay left it out
        continue

    rule:
        name:
            f"study_{_name}"
        input:
            plan_reports.of_study(catalogue, _name),
        localrule: True

    workflow.get_rule(f"study_{_name}").docstring = f"A study: {_entity.description}."


for _name, _studies in plan_reports.papers(catalogue).items():

    rule:
        name:
            f"paper_{_name}"
        input:
            plan_reports.shown(catalogue, *_studies),
        localrule: True

    workflow.get_rule(f"paper_{_name}").docstring = f"All tables and figures of a paper: {', '.join(_studies)}."


rule unknown_target:
    # Reached only by a name that no rule above has: it says what was meant.
    input:
        reports.refuse_target,
    output:
        "{kind}_{name}",
    wildcard_constraints:
        kind="table|figure|study|paper",
        name=r"[^/]+",
