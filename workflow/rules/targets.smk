# The menu: what one asks for by name (snakemake --list-target-rules).


rule data:
    """All records, downloaded and prepared."""
    input:
        sorted(
            {
                f"results/{records}"
                for model, _, _, name in cells_of_studies()
                for benchmark in [catalogue.benchmark(model, name)]
                for path in (
                    f"data/{benchmark.dataset}/{benchmark.split}.jsonl",
                    *benchmark_modules.inputs_of(benchmark.settings).values(),
                )
                for records in records_behind(model, path)
            }
            | {
                f"results/{records}"
                for model, recipe, _, _ in cells_of_studies()
                for step in recipes.steps_of(recipe)
                for path in catalogue.step(model, step).settings.inputs().values()
                for records in records_behind(model, path)
            }
        ),
    localrule: True


rule models:
    """All checkpoints: every recipe on every model, at every seed."""
    input:
        sorted({checkpoint_path(*cell[:3]) for cell in cells_of_studies()}),
    localrule: True


rule evaluations:
    """All scores."""
    input:
        sorted({scores_path(*cell) for cell in cells_of_studies()}),
    localrule: True


rule analyses:
    """All analyses of what trainings wrote down."""
    input:
        sorted({analysis_path(*cell) for study in catalogue.studies for cell in catalogue.analysis_cells(study)}),
    localrule: True


rule claims:
    """Every headline claim, checked: results/claims.md."""
    input:
        "results/claims.json",
        "results/claims.md",
    localrule: True


for _name, _entity in catalogue.tables.items():

    rule:
        name:
            f"table_{_name}"
        input:
            expand("results/tables/{table}.{ending}", table=_name, ending=["csv", "md", "tex"]),
        localrule: True

    workflow.get_rule(f"table_{_name}").docstring = f"Table: {_entity.title}."


for _name, _entity in catalogue.figures.items():

    rule:
        name:
            f"figure_{_name}"
        input:
            expand("results/figures/{figure}.{ending}", figure=_name, ending=["pdf", "png"]),
        localrule: True

    workflow.get_rule(f"figure_{_name}").docstring = f"Figure: {_entity.title}."


for _name, _entity in catalogue.studies.items():
    if not targets_of(_name):  # its tables and figures are listed with another study, or an overlay left it out
        continue

    rule:
        name:
            f"paper_{_name}"
        input:
            targets_of(_name),
        localrule: True

    workflow.get_rule(f"paper_{_name}").docstring = f"Tables and figures: {_entity.description}."


rule unknown_target:
    # Reached only by a name that no rule above has: it says what was meant.
    input:
        explained(lambda wildcards: catalogues.refuse_target(catalogue, wildcards.kind, wildcards.name)),
    output:
        "{kind}_{name}",
    wildcard_constraints:
        kind="table|figure|paper",
        name=r"[^/]+",
