"""The look: layout and macros render strictly, keep the content policy, and their colours can be told apart."""

import datetime
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jinja2 import ChoiceLoader, DictLoader, FileSystemLoader, UndefinedError

from app.html import FormField, jinja

ROOT = Path(__file__).parent.parent
CSS = (ROOT / "static/app.css").read_text()
IMPORTS = """{% import "components/ui.html" as ui %}{% import "components/form.html" as form %}
{% import "components/charts.html" as charts %}"""


def render(body: str, **context: Any) -> str:
    page = IMPORTS + body
    env = jinja().overlay()  # the app's own settings, with one page more
    env.loader = ChoiceLoader([DictLoader({"page.html": page}), FileSystemLoader(ROOT / "templates")])
    return env.get_template("page.html").render(**context)


def field(name: str, label: str, kind: Any, **given: Any) -> FormField:
    return FormField(name, label, given.pop("help", ""), kind, **{"required": True, **given})


MEMBER = SimpleNamespace(
    account=SimpleNamespace(name="<ada>"), project=SimpleNamespace(slug="demo", name="Format study"), role="owner"
)
RAIL = [
    SimpleNamespace(label="Pairs", url="/p/demo/pairs", count=12345, is_running=True, is_here=True),
    SimpleNamespace(label="Runs", url="/p/demo/runs", count=None, is_running=False, is_here=False),
]
ROWS = [
    SimpleNamespace(label="Base", method="base", value=0.25, low=0.21, high=0.29, n=1152),
    SimpleNamespace(label="Odd", method="something new", value=None, low=None, high=None, n=0),
]


def test_layout_marks_the_place_escapes_names_and_keeps_the_content_policy() -> None:
    body = '{% extends "layout.html" %}{% block content %}<h1>Here</h1>{% endblock %}'
    page = render(body, title="Pairs", member=MEMBER, rail=RAIL)
    assert page.count('aria-current="page"') == 1 and "12,345" in page and "(running)" in page
    assert "<ada>" not in page and "&lt;ada&gt;" in page
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)", page)
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        assert (ROOT / path[1:]).is_file(), path
    alone = render(body, title="Log in", member=None, rail=[])
    assert 'id="rail"' not in alone and "<h1>Here</h1>" in alone


def test_strict_templates_refuse_what_the_page_forgot() -> None:
    with pytest.raises(UndefinedError):
        render('{% extends "layout.html" %}', member=None, rail=[])


def test_interval_prints_sign_interval_and_n() -> None:
    text = re.sub(r"<[^>]+>", "", render("{{ ui.interval(-0.05, -0.1, 0.02, 1200, is_difference=true) }}"))
    assert " ".join(text.split()) == "−0.05 [−0.10, +0.02] n = 1,200"
    assert "–" in render("{{ ui.interval(none, none, none, '96 prompts × 12') }}")


def test_bar_knows_when_the_total_is_unknown() -> None:
    assert 'value="3"' in render("{{ ui.bar(3, 10) }}")
    assert "value=" not in render("{{ ui.bar(3, 0) }}")


def test_checkbox_is_preceded_by_a_hidden_false_and_errors_are_tied_to_the_control() -> None:
    fields = [
        field(name="is_lora", label="LoRA", kind="checkbox", value=True),
        field(name="optim.lr", label="Rate", kind="number", value=5e-4, min=0, errors=["Too hot."], help="Step."),
        field(name="start", label="Start", kind="select", value=2, choices=[("1", "base"), ("2", "sft")]),
        field(name="sets", label="Sets", kind="multi", value=[1], choices=[("1", "one"), ("2", "two")]),
        field(name="note", label="Note", kind="textarea", value="<b>", required=False),
    ]
    page = render("{% for f in fields %}{{ form.form_row(f) }}{% endfor %}", fields=fields)
    assert re.search(
        r'type="hidden" name="is_lora" value="false">\s*<label[^>]*>'
        r'<input[^>]*type="checkbox" value="true" checked',
        page,
    )
    assert 'aria-describedby="f-optim-lr-help f-optim-lr-error"' in page and 'aria-invalid="true"' in page
    assert re.findall(r'<option value="(\d)" selected', page) == ["2", "1"]
    assert "&lt;b&gt;" in page and 'min="0"' in page


def test_charts_say_their_numbers_as_text_and_put_marks_where_they_belong() -> None:
    page = render("{{ charts.bars(rows, 'Rate', reference=0.5) }}{{ charts.forest(rows, 'Same') }}", rows=ROWS)
    assert 'width="25.00%"' in page and 'x1="50.00%"' in page
    assert "not measured" in page and "n = 1,152" in page and "<title>Base: 0.25, interval 0.21 to 0.29" in page
    assert "arm-base" in page and "arm-other" in page and "style=" not in page
    bins = [SimpleNamespace(low=i, high=i + 1, count=c) for i, c in enumerate((1, 4))]
    drawn = render("{{ charts.histogram(bins, 'PPO', 'ppo') }}", bins=bins)
    assert 'height="70.0"' in drawn and 'height="17.5"' in drawn and "n = 5" in drawn
    empty = render("{{ charts.forest([], 'None') }}{{ charts.histogram([], 'PPO') }}")
    assert "Nothing measured yet." in empty


def test_blocks_render() -> None:
    page = render(
        """{{ ui.badge("training signal") }}{{ ui.empty("No runs", "Start one.", "/new", "Start") }}
        {{ ui.copy("#log") }}
        {{ ui.pair("<i>", "b", chosen="left") }}{{ ui.when(moment) }}
        {{ ui.messages([{"role": "user", "content": "x"}]) }}
        {% call ui.table("T", ["A", ("N", "num"), ("S", "", "?sort=s")]) %}<tr><td>1</td></tr>{% endcall %}
        {{ ui.pager("?after=3", none, "/runs") }}{{ ui.arm({"name": "dpo-1", "method": "dpo"}) }}
        {{ charts.curve("/runs/7/curve.json", "Loss", "run") }}""",
        moment=datetime.datetime(2026, 11, 20, 14, 3, tzinfo=datetime.UTC),
    )
    assert "badge-training-signal" in page and "&lt;i&gt;" in page and "2026-11-20T14:03:00Z" in page
    assert "/runs.csv" in page and "arm-dpo" in page and 'data-curve="/runs/7/curve.json"' in page


def test_vendored_files_are_the_version_in_their_name() -> None:
    assert "'4.0.1'" in (ROOT / "static/htmx-4.0.1.min.js").read_text().replace('"', "'")
    assert "v1.6.32" in (ROOT / "static/uPlot-1.6.32.min.js").read_text()[:300]
    assert len(list((ROOT / "static/licences").iterdir())) == 2


# --- colours ---------------------------------------------------------------------------------------------------------
# Dichromacy at full severity, Machado, Oliveira and Fernandes 2009, table 1; the identity is normal sight.
SIGHT = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}
ARMS = ("base", "sft", "dpo", "ppo", "grpo", "in-context")


def tokens(scheme: str) -> dict[str, str]:
    layer = CSS.split("@layer tokens {")[1].split("@layer base")[0]
    light, dark = layer.split("@media (prefers-color-scheme: dark)")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))


def linear(colour: str) -> Any:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: Any) -> Any:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_meets_aa_and_marks_meet_three_to_one(scheme: str) -> None:
    colour = tokens(scheme)
    for text, ground in itertools.product(("ink", "soft", "accent", "good", "bad", "warn"), ("page", "sunk", "raised")):
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    assert contrast(colour["on-accent"], colour["accent"]) >= 4.5
    assert contrast(colour["edge"], colour["page"]) >= 3  # borders of controls
    for arm in ARMS:
        assert contrast(colour[f"arm-{arm}"], colour["page"]) >= 3, arm


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sight", sorted(SIGHT))
def test_arms_can_be_told_apart(scheme: str, sight: str) -> None:
    seen = {arm: lab(SIGHT[sight] @ linear(tokens(scheme)[f"arm-{arm}"])) for arm in ARMS}
    for one, other in itertools.combinations(ARMS, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= 15, (one, other)  # 2.3 is one just noticeable difference
