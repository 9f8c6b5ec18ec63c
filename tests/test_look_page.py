"""Looking at players: their record, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from shapley.errors import ShapleyError
from shapley.hf.load import describe
from shapley.look import seen as seen_module
from shapley.look.cards import record
from shapley.look.page import page
from shapley.look.players import Players
from shapley.look.seen import observed
from tests.passages import PLAYERS, in_a_basis, passages
from tests.tiny import tiny_lm, with_units

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IN_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr(seen_module, "fast_dtype", lambda device: torch.float32)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("llama")


@pytest.fixture(scope="module")
def found(lm):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen_module, "fast_dtype", lambda device: torch.float32)
        return record(Players(lm), PLAYERS, passages(lm))


def test_record_of_players(lm, found):
    assert [(card["layer"], card["neuron"]) for card in found["players"]] == PLAYERS
    assert found["model"] == describe(lm) and found["text"]["passages"] == 7 and found["scores"] is None
    seen = observed(Players(lm), PLAYERS, passages(lm))
    for i, card in enumerate(found["players"]):
        highest = [example for example in card["examples"] if example["why"] == "highest"]
        largest = [max(x for x in example["activation"] if x is not None) for example in highest]
        assert largest == sorted(largest, reverse=True) and len(largest) == 7
        assert largest[0] == pytest.approx(np.nanmax(seen.activation[:, i]), rel=1e-2)
        lowest = next(example for example in card["examples"] if example["why"] == "lowest")
        least = min(x for x in lowest["activation"] if x is not None)
        assert least == pytest.approx(np.nanmin(seen.activation[:, i]), rel=1e-2)
        assert all(sum(shares) == pytest.approx(1, abs=0.02) for shares in card["histogram"]["shares"].values())
        assert len(card["promoted"]) == 10 and card["promoted"][0][1] > 0 > card["suppressed"][0][1]
    json.dumps(found, allow_nan=False)


def test_nothing_in_a_passage_ends_the_script(found):
    hostile = json.loads(json.dumps(found))
    hostile["players"][0]["examples"][0]["tokens"][0] = "</script><script>alert(1)</script><!--"
    text = page(hostile, "<b>title</b>")
    assert "<script>alert" not in text and "&lt;b&gt;title" in text and text.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', text, re.S).group(1)
    assert json.loads(data) == hostile


def test_the_page_needs_nothing_else(found):
    """Neither its markup nor its script names an address; what is in passages is text."""
    forbidden = (
        r"""(?i)https?:|["'(=]\s*//|\b(?:src|srcset|href|action)\s*=|url\(|@import|<link|<base|fetch\(|\bimport\b"""
    )
    text = page(found, "title")
    own, n = re.subn(r'(id="data">).*?(</script>)', r"\1\2", text, flags=re.S)
    assert n == 1
    own = own.replace('"http://www.w3.org/2000/svg"', "")  # a name, which nobody fetches
    assert re.findall(forbidden, own) == []


def in_browser(path, state="", script=""):
    """What a page is once its script has run, and then another one: the cards shown, in order, and all of its markup."""
    operated = path.with_name("operated.html")
    text = path.read_text(encoding="utf-8")
    assert text.count("</body>") == 1
    operated.write_text(text.replace("</body>", f"<script>{{ {script} }}</script></body>"), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={path.parent}/profile",
        "--virtual-time-budget=2000", "--dump-dom", f"{operated.as_uri()}#{state}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    shown = re.findall(r'class="card" id="p(\d+:\d+)"', dom)
    assert re.findall(r'<a href="#">(\d+:\d+)</a>', dom) == shown  # the index beside the cards
    return shown, dom


def operated(control, value, event):
    """A script that does what a hand does to a control."""
    own = f'document.getElementById("{control}")'
    return f'{own}.value = "{value}"; {own}.dispatchEvent(new Event("{event}", {{bubbles: true}}));'


def typed(text):
    return operated("q", text, "input")


def chosen(order):
    return operated("sort", order, "change")


@pytest.fixture
def of_three(found, tmp_path):
    """A page of 2:5, 0:3 and 2:1, with scores of two topics."""
    own = json.loads(json.dumps(found))
    own["scores"] = {"file": "s.h5", "topics": ["sport", "music"], "semivalue": "shapley"}
    scores = [([0.1, 0.01], [-0.2, None]), ([0.3, 0.05], [0.1, 0.02]), ([None, None], [None, None])]
    for card, (sport, music) in zip(own["players"], scores, strict=True):
        card["scores"] = {"sport": sport, "music": music}
    own["players"][1]["promoted"][0][0] = " zebra"
    own["players"][1]["examples"][0]["tokens"][0] = "<img src=x onerror=document.title='broken'>"
    path = tmp_path / "page.html"
    path.write_text(page(own, "three"), encoding="utf-8")
    return path


@IN_BROWSER
def test_the_page_searches_and_sorts_in_a_browser(of_three):
    def opened(state):
        shown, dom = in_browser(of_three, state)
        assert "<title>three</title>" in dom
        return shown, dom

    assert opened("")[0] == ["2:5", "0:3", "2:1"]
    assert opened("sort=score0")[0] == ["0:3", "2:5", "2:1"]
    assert opened("sort=layer")[0] == ["0:3", "2:1", "2:5"]
    shown, dom = opened("q=ZEBRA&sort=layer")
    assert shown == ["0:3"] and "1 of 3 neurons" in dom and "<svg" in dom and "rgba(0, 114, 178" in dom
    assert opened("q=2:")[0] == ["2:5", "2:1"] and opened("q=nosuchword")[0] == []


@IN_BROWSER
def test_the_search_box_and_the_sort_menu_work(of_three):
    def after(script, state=""):
        shown, dom = in_browser(of_three, state, script + "document.body.dataset.address = location.hash;")
        [address] = re.findall(r'data-address="(.*?)"', dom)
        assert re.findall(r'id="count"[^>]*>(.*?)<', dom) == [f"{len(shown)} of 3 neurons"]
        return shown, address.replace("&amp;", "&")

    assert after(typed("2:")) == (["2:5", "2:1"], "#q=2%3A&sort=rank")
    assert after(chosen("score1")) == (["0:3", "2:5", "2:1"], "#q=&sort=score1")
    assert after(typed("2:") + chosen("layer")) == (["2:1", "2:5"], "#q=2%3A&sort=layer")
    assert after(typed(""), "q=zebra&sort=layer") == (["0:3", "2:1", "2:5"], "#q=&sort=layer")
    assert in_browser(of_three, "q=zebra", 'location.hash = "q=2:"')[0] == ["2:5", "2:1"]  # another view's address


@IN_BROWSER
def test_what_the_script_makes_loads_nothing(of_three):
    """No file either, of which the browser keeps no record where it is not there."""
    named = '[...document.querySelectorAll("[src], [href]")].map(one => one.getAttribute("src") ?? one.getAttribute("href"))'
    loaded = 'performance.getEntriesByType("resource").map(one => one.name)'
    script = f"const all = () => [...new Set([...{named}, ...{loaded}])]; "
    _, dom = in_browser(of_three, "", script + "setTimeout(() => { document.body.dataset.all = all().join(); }, 500);")
    assert re.findall(r'data-all="(.*?)"', dom) == ["#"]


@IN_BROWSER
def test_scores_have_bars_of_two_standard_errors(of_three):
    _, dom = in_browser(of_three)
    drawn = [own.split("</svg>")[0] for own in dom.split('aria-label="scores by topic"')[1:]]

    def ends(tag, names):
        """Of each card, of each of its lines or bars: attributes."""
        return [
            [
                [float(re.search(rf' {name}="(.*?)"', own).group(1)) for name in names]
                for own in re.findall(f"<{tag} .*?>", svg)
            ]
            for svg in drawn
        ]

    at = [lambda x: 100 + 170 * (x + 0.2) / 0.32, lambda x: 100 + 170 * x / 0.4]  # from the least end to the largest
    first, second, third = ends("line", ["x1", "x2"])
    np.testing.assert_allclose(first, [[at[0](0.08), at[0](0.12)]])  # music has no standard error
    np.testing.assert_allclose(second, [[at[1](0.2), at[1](0.4)], [at[1](0.06), at[1](0.14)]])
    assert third == []
    first, second, third = ends("rect", ["x", "width"])
    np.testing.assert_allclose(first, [[at[0](0), 170 * 0.1 / 0.32], [at[0](-0.2), 170 * 0.2 / 0.32]])
    np.testing.assert_allclose(second, [[at[1](0), 170 * 0.3 / 0.4], [at[1](0), 170 * 0.1 / 0.4]])
    assert third == []


@IN_BROWSER
def test_a_link_of_the_index_leads_to_its_card(of_three):
    click = 'document.querySelectorAll("#index a")[2].click(); document.body.dataset.top = scrollY;'
    shown, dom = in_browser(of_three, "sort=layer", click)
    assert shown == ["0:3", "2:1", "2:5"]  # the view is as it was
    assert float(re.search(r'data-top="(.*?)"', dom).group(1)) > 0


@IN_BROWSER
@pytest.mark.parametrize(
    ("site", "heading"), [("mlp_hidden", "nearest by what they write"), ("mlp_out", "directions that write along it")]
)
def test_the_heading_of_the_nearest_is_of_the_site(site, heading, tmp_path):
    every = Players(in_a_basis(), site)
    path = tmp_path / "page.html"
    path.write_text(page(record(every, [(0, 5)], passages(every.lm)), "title"), encoding="utf-8")
    assert f"<h3>{heading}</h3>" in in_browser(path)[1]


@pytest.mark.parametrize(
    ("model", "site", "noun", "near"),
    [
        (lambda: tiny_lm("llama"), "mlp_hidden", "neuron", "neuron"),
        (in_a_basis, "mlp_hidden", "direction", "direction"),
        (lambda: with_units(tiny_lm("llama"), "add"), "mlp_hidden", "unit", "unit"),
        (lambda: with_units(in_a_basis(), "add"), "mlp_hidden", "unit", "unit"),
        (lambda: tiny_lm("llama"), "mlp_out", "direction", "neuron"),
        (in_a_basis, "mlp_in", "direction", "direction"),
        (lambda: with_units(tiny_lm("llama"), "replace"), "mlp_out", "direction", "unit"),
    ],
)
def test_players_and_their_nearest_are_called_what_they_are(model, site, noun, near):
    every = Players(model(), site)
    found = record(every, [(0, 5), (0, 3)], passages(every.lm))
    assert (found["noun"], found["nearest_noun"]) == (noun, near)
    text = page(found, "title")
    n, layers = every.lm.sites.d_mlp, "1 layer" if near == "unit" else "3 layers"
    assert f"{layers} of {n} {near}s. Shown: {noun}s ({site})." in text
    assert f"Nearest</b> are the {near}s whose writing" in text and f'placeholder="layer:{noun}, or words"' in text
    with pytest.raises(ShapleyError, match=f"whose {noun}s are 0 to {every.width - 1} of layers 0 to"):
        every.check([(0, every.width)])
