"""The report's page: one self-contained HTML file."""

from typing import Any

from jinja2 import Environment

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data report: {{ f.source }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
.muted { color: #666 } .bad { color: #a40000; font-weight: 600 } .good { color: #1a6b2d; font-weight: 600 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: right; vertical-align: top }
td:first-child, th:first-child, td.text { text-align: left; overflow-wrap: anywhere }
.bar { background: #3b6ea5; height: .9rem; display: inline-block }
.histogram { display: flex; align-items: flex-end; height: 90px; gap: 1px; max-width: 30rem }
.histogram div { background: #3b6ea5; flex: 1 } .row { display: flex; flex-wrap: wrap; gap: 2.5rem }
.row > div { min-width: 18rem; flex: 1 } img { max-width: 100%; display: block } .sheet { margin-bottom: .6rem }
</style></head><body>
<h1>Data report</h1><p class="muted">{{ f.source }}<br>fingerprint {{ f.fingerprint[:16] }}</p>
<table><tr><th>images</th><td>{{ '{:,}'.format(f.images) }}</td></tr>
<tr><th>largest class to smallest</th><td>{{ f.imbalance }} to 1</td></tr>
{% for name, number in findings %}<tr><th>{{ name }}</th>
<td class="{{ 'bad' if number else 'good' }}">{{ number }}</td></tr>{% endfor %}</table>

<h2>Classes and splits</h2>
<table><tr><th>class</th><th>train</th><th>validation</th><th>test</th><th>all</th><th>share</th></tr>
{% for label, row in f.classes.items() %}{% set all = row.values() | sum %}
<tr><td>{{ label }}</td>{% for name in ('train', 'validation', 'test') %}<td>{{ row[name] }} <span class="muted">
{{ '%.0f%%' % (100 * row[name] / (all or 1)) }}</span></td>{% endfor %}<td>{{ all }}</td>
<td class="text"><span class="bar" style="width: {{ (300 * all / f.images) | round(1) }}px"></span>
{{ '%.1f%%' % (100 * all / f.images) }}</td></tr>{% endfor %}</table>
{% if f.train_also %}<p>Photos of other counts, for training only:
{% for label, n in f.train_also.items() %}{{ '{:,}'.format(n) }} of {{ label }}{{ ', ' if not loop.last }}{% endfor %}.
</p>{% endif %}

<div class="row">{% for title, name in (('Brightness (mean gray, 0 to 255)', 'brightness'),
('Sharpness (variance of the Laplacian; low is blurred)', 'sharpness'), ('Bytes', 'bytes')) %}{% set d = f[name] %}
<div><h2>{{ title }}</h2><div class="histogram">{% set top = d.counts | max %}{% for n in d.counts %}
<div style="height: {{ (100 * n / top) | round(1) }}%" title="{{ n }}"></div>{% endfor %}</div>
<p class="muted">{{ d.from }} to {{ d.to }}; least {{ d.min }}, median {{ d.median }}, most {{ d.max }}</p></div>
{% endfor %}</div>

<div class="row"><div><h2>Sizes in pixels</h2><table>{% for size, n in (f.sizes | items | list)[:15] %}
<tr><td>{{ size }}</td><td>{{ n }}</td></tr>{% endfor %}</table>
{% if f.sizes | length > 15 %}<p class="muted">and {{ f.sizes | length - 15 }} more sizes</p>{% endif %}</div>
{% for title, rows, name in (('Darkest', f.darkest, 'brightness'), ('Most blurred', f.most_blurred, 'sharpness')) %}
<div><h2>{{ title }}</h2><table><tr><th>id</th><th>label</th><th>{{ name }}</th></tr>{% for row in rows %}
<tr><td>{{ row.id }}</td><td>{{ row.label }}</td><td>{{ row[name] }}</td></tr>{% endfor %}
</table></div>{% endfor %}</div>

<h2>Some of each class</h2>{% for label, data in sheets.items() %}
<div class="sheet">{{ label }}<img alt="images of class {{ label }}" src="data:image/jpeg;base64,{{ data }}"></div>
{% endfor %}

{% for title, clusters in (('Exact duplicates', f.exact_duplicates), ('Near duplicates', f.near_duplicates)) %}
{% if clusters %}<h2>{{ title }}</h2><table><tr><th>ids</th><th>labels</th><th>splits</th></tr>
{% for c in clusters[:max_rows] %}<tr><td>{{ c.ids | join(', ') }}</td><td>{{ c.labels | join(', ') }}</td>
<td class="{{ 'bad' if c.across_splits }}">{{ c.splits | join(', ') }}</td></tr>{% endfor %}</table>
{% if clusters | length > max_rows %}
<p class="muted">and {{ clusters | length - max_rows }} more in the JSON</p>{% endif %}
{% endif %}{% endfor %}

{% for title, rows in (('Left out', f.unreadable),
('Labels that their items contradict', f.label_disagreements)) %}
{% if rows %}<h2>{{ title }}</h2><table>{% for row in rows[:max_rows] %}
<tr><td>{{ row.id }}</td><td class="text">{{ row.reason }}</td></tr>{% endfor %}</table>
{% if rows | length > max_rows %}<p class="muted">and {{ rows | length - max_rows }} more in the JSON</p>{% endif %}
{% endif %}{% endfor %}
</body></html>
"""


def render(facts: dict[str, Any], sheets: dict[str, str], max_rows: int) -> str:
    """The page of a report's facts and base64 JPEGs; tables have at most `max_rows` rows."""
    findings = [
        ("exact duplicates (groups)", len(facts["exact_duplicates"])),
        ("near duplicates (groups)", len(facts["near_duplicates"])),
        ("duplicates across splits (leaks)", facts["across_splits"]),
        ("left out", len(facts["unreadable"])),
    ]
    if "label_disagreements" in facts:  # names of classes have no items
        findings.append(("labels that their items contradict", len(facts["label_disagreements"])))
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(f=facts, sheets=sheets, findings=findings, max_rows=max_rows)
