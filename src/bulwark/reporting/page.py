"""The template of results/report.html (Jinja2): plain HTML with inline style, for light, dark and print."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; --line: #8885; --soft: #8881; --quiet: #777; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
  h1 { font-size: 1.7rem; margin: 1rem 0 0; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
  section h1 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; }
  nav a { margin-right: 1.2rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
  th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: top; }
  th { background: var(--soft); }
  .badge { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; color: #fff; font-weight: 600;
    font-size: .85rem; white-space: nowrap; }
  .reproduced, .holds { background: #1a7f37; } .contradicted, .opposite { background: #b3261e; }
  .not-reproduced, .fails { background: #a15c00; } .undecided, .open { background: #5b6470; }
  article { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1.2rem; margin: .8rem 0; }
  article h3 { margin: 0; font-size: 1.05rem; } article h3 .badge { margin-right: .6rem; }
  td:nth-child(n+4) { white-space: nowrap; }
  .quiet, figcaption { color: var(--quiet); font-size: .9rem; }
  figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: #fff; }
  code { font-size: .85rem; overflow-wrap: anywhere; }
  @media print { nav { display: none; } details { display: block; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<nav><a href="#claims">Claims</a><a href="#tables">Tables</a><a href="#figures">Figures</a>
<a href="#provenance">Provenance</a></nav>
{% for name, study in studies.items() %}
<p><b>{{ name }}</b>: {{ study.description }}. Models: {{ study.models | join(", ") }}. Recipes:
{{ study.recipes | join(", ") }}. Seeds: {{ study.seeds | join(", ") }}.</p>
{% endfor %}

<h2 id="claims">Claims</h2>
{% for claim in claims %}
<article>
<h3><span class="badge {{ claim.verdict | replace(' ', '-') }}">{{ claim.verdict }}</span>{{ claim.statement }}</h3>
<p>Effect {{ claim.effect | number }}, {{ (100 * claim.confidence) | round | int }} % interval
{{ claim.interval | span }}, p = {{ claim.p_value | number }}, n = {{ claim.n }} records, seeds
{{ claim.seeds | join(', ') }}. <span class="quiet">{{ claim.source }}</span></p>
<div class="wide"><table>
<tr><th>model</th><th>condition</th><th>outcome</th><th>values</th><th>effect</th><th>interval</th><th>p</th><th>n</th></tr>
{% for model, content in claim.models.items() %}
{% for entry in content.conditions %}
<tr><td>{{ model }}</td><td>{{ entry.text }}</td>
<td><span class="badge {{ entry.outcome }}">{{ entry.outcome }}</span><br>
<span class="quiet">{{ entry.reason }}</span></td>
<td>{% for recipe, value in entry["values"].items() %}{{ recipe }}&nbsp;{{ value | number }}<br>{% endfor %}</td>
<td>{{ entry.effect | number }}<br><span class="quiet">{{ entry | seeds_of }}</span></td>
<td>{{ entry.interval | span }}</td><td>{{ entry.p_value | number }}</td>
<td>{{ entry.n }}</td></tr>
{% endfor %}
{% endfor %}
</table>
<p class="quiet">{{ reading }}</p></div>
{% for text in claim.not_measured %}<p class="quiet">Not measured in this study: {{ text }}.</p>{% endfor %}
</article>
{% else %}
<p class="quiet">The configuration lists no claim.</p>
{% endfor %}

<h2 id="tables">Tables</h2>
{% for table in tables %}
<section id="table-{{ table.name }}"><div class="wide">{{ table.html }}</div></section>
{% else %}
<p class="quiet">The configuration lists no table.</p>
{% endfor %}

<h2 id="figures">Figures</h2>
{% for figure in figures %}
<figure id="figure-{{ figure.name }}">
<img alt="{{ figure.caption or figure.name }}" src="data:image/png;base64,{{ figure.data }}">
<figcaption>{{ figure.caption }}</figcaption>
</figure>
{% else %}
<p class="quiet">The configuration lists no figure.</p>
{% endfor %}

<h2 id="provenance">Provenance</h2>
<div class="wide"><table>
{% for key, value in provenance.items() %}
<tr><th>{{ key }}</th><td><code>{{ value }}</code></td></tr>
{% endfor %}
</table></div>
<details><summary>Settings of the benchmarks</summary>
<div class="wide"><table>
<tr><th>benchmark</th><th>models</th><th>settings</th></tr>
{% for entry in settings %}
<tr><td>{{ entry.benchmark }}</td><td>{{ entry.models }}</td><td><code>{{ entry.settings }}</code></td></tr>
{% endfor %}
</table></div></details>
<details><summary>Every measurement</summary>
<div class="wide"><table>
<tr><th>model</th><th>recipe</th><th>seed</th><th>benchmark</th><th>n</th><th>truncated prompts</th>
<th>answers cut by the length limit</th><th>empty answers</th><th>failed judgements</th></tr>
{% for run in runs %}
<tr>{% for key in ("model", "recipe", "seed", "benchmark", "n") %}<td>{{ run[key] }}</td>{% endfor %}

{% for key in ("truncated_prompts", "answers_at_length_limit", "empty_answers", "failed_judgements") %}
<td>{{ "–" if run[key] is none else run[key] }}</td>
{% endfor %}
</tr>
{% endfor %}
</table></div></details>
</body>
</html>
"""
