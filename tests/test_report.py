"""The report: one self-contained page from synthetic files, its numbers checked by hand; figures; and no torch."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from shapley.clusters import Cluster, Ranking
from shapley.errors import ShapleyError
from shapley.impairment import Impairment
from shapley.plots import layers_figure, save, specificity_figure, sweep_figure, top_figure
from shapley.prompts import Prompt, write_prompts
from shapley.records import Sweep, write_sweep
from shapley.report import split_half, write_report
from shapley.store import ScoreFile, TopicScores, write_scores
from tests.test_store import MODEL, topic_attrs

VOID = {"meta", "img", "br", "hr", "link", "input"}
SHAPE = (3, 60)
EXACT = np.arange(180).reshape(SHAPE) % 2 == 0
AUDIT = {"players": 29, "bias_rms": 0.01, "bias_bound": 0.04, "bound_covers": 0.9, "confidence": 0.95}


class Page(HTMLParser):
    """Tags, attributes, text, and the cells of every table row; fails on tags that do not balance."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.elements, self.rows, self.text = html, [], [], [], ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] == "style":
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, *cells):
        """The one row that starts with these cells."""
        (found,) = [row for row in self.rows if row[: len(cells)] == list(cells)]
        return found


def scores_of(key):
    rng = np.random.default_rng(key)
    replicates = rng.normal(size=(4, *SHAPE)).astype(np.float32)
    score = replicates.mean(axis=0).astype(np.float64)
    score[2, 50:] = np.nan
    counts = np.full(SHAPE, 8)
    return TopicScores(score, rng.random(SHAPE) + 0.01, counts, 0 * counts, replicates, topic_attrs(seed=11))


def two_stage_scores(key):
    """Half of the neurons exact, and an audit."""
    scores = scores_of(key)
    details = {"samples": 64, "refined": 90, "stopped": "the budget is spent", "audit": AUDIT}
    attrs = scores.attrs | {"estimator": "two-stage", "details": json.dumps(details)}
    return dataclasses.replace(scores, exact=EXACT, attrs=attrs)


def falling(*last):
    """``[cluster, strength, seed, prompt]``: from -1 down by ``last``, which is given for each cluster and prompt."""
    last = np.array(last, dtype=float)
    steps = np.array([0.0, 0.5, 1.0])[None, :, None, None]
    return -1.0 - np.repeat(steps * last[:, None, None, :], 2, axis=2)


def sweep_of(records, clusters, **options):
    stacked = {topic: np.stack([values, values, np.exp(values)]) for topic, values in records.items()}
    strengths, attrs = np.array([0.0, 0.5, 1.0]), {"wall_seconds": 4.0, "forward_rows": 123}
    impairment = Impairment(**({"kind": "scale"} | options))
    return Sweep(stacked, clusters, [7] * len(clusters), strengths, np.ones((3, 3)), impairment, attrs)


ARMS = ["cluster-athlete", "cluster-athlete/random-1", "cluster-athlete/random-2"]
ATHLETE_DROPS = ([1, 2, 3, 2], [0.1] * 4, [0.3] * 4)  # mean 2, standard error sqrt(2/3) / 2; random 0.2 and 0.1
ARTIST_DROPS = ([0.25] * 4, [0.0] * 4, [0.0] * 4)


def fill(folder):
    write_scores(folder / "scores.h5", MODEL, {"athlete": scores_of(1), "artist": two_stage_scores(2)}, keep=False)
    Cluster(((0, 1), (1, 2)), "mlp_hidden", MODEL, {"rule": "top", "k": 2}).save(folder / "cluster-athlete.json")
    prompts = [("athlete", " race", True, -0.5), ("athlete", " race", False, -2.0), ("artist", " song", True, -1.0)]
    write_prompts(
        folder / "prompts.jsonl",
        [Prompt(topic, "the", answer, known=known, logprob=logprob) for topic, answer, known, logprob in prompts],
    )
    sweep = sweep_of({"athlete": falling(*ATHLETE_DROPS), "artist": falling(*ARTIST_DROPS)}, ARMS)
    write_sweep(folder / "scale.h5", sweep)
    general = {"athlete": falling([5.0] * 4), "artist": falling([1.0] * 4)}
    general["artist"][:, 1] = -3.0  # -1, -3, -2
    write_sweep(folder / "general.h5", sweep_of(general, ["everything"], kind="noise", unit="sd"))
    (folder / "notes.json").write_text('{"mine": true}')
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder that no test changes, for ``page``."""
    return fill(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def page(source):
    return Page(write_report(source).read_text(encoding="utf-8"))


class TestPage:
    def test_it_loads_nothing(self, page):
        assert page.elements
        for tag, attrs in page.elements:
            assert tag not in ("script", "link", "iframe", "object", "embed", "base")
            assert not attrs.keys() & {"srcset", "href", "background", "onload"}
            if "src" in attrs:
                assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", attrs["src"])
        assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub('src="data:[^"]*"', "", page.html))

    def test_every_image_has_a_text(self, page):
        images = [attrs for tag, attrs in page.elements if tag == "img"]
        assert len(images) == 3 + 2 * 2
        assert all(attrs["alt"] for attrs in images)

    def test_topics_and_the_top_neurons_are_named(self, source, page):
        for topic in ("athlete", "artist"):
            score = ScoreFile(source / "scores.h5").array(topic, "score")
            best = sorted((p for p in np.ndindex(SHAPE) if np.isfinite(score[p])), key=lambda p: -score[p])[:15]
            stderr = ScoreFile(source / "scores.h5").array(topic, "stderr")
            start = page.rows.index([topic, "score", "95% interval", "from"]) + 1
            found = page.rows[start : start + 15]
            assert [row[0] for row in found] == [f"{layer}.{neuron}" for layer, neuron in best]
            assert [row[1] for row in found] == [f"{score[place]:.4f}" for place in best]
            halves = [stats.t.ppf(0.975, 7) * stderr[place] for place in best]  # eight samples each
            expected = [f"{score[p] - half:.4f} to {score[p] + half:.4f}" for p, half in zip(best, halves, strict=True)]
            assert [row[2] for row in found] == expected
            origin = {row[0]: row[3] for row in found}
            exact = EXACT if topic == "artist" else np.ones(SHAPE, dtype=bool)
            assert origin == {f"{p[0]}.{p[1]}": "differences" if exact[p] else "gradients" for p in best}

    def test_the_audit_is_in_words(self, page):
        words = " ".join(page.text.split())
        assert "artist: 90 neurons have exact differences; the budget is spent." in words
        assert "root mean square 0.0100; below 0.0400 for at least 90% of the neurons, with confidence 95%" in words

    def test_what_was_run(self, page):
        assert "TinyForCausalLM" in page.text and "2 layers x 6 neurons" in page.text
        row = page.row("athlete", "permutation")
        assert row[2:4] == ["shapley", "logprob"]
        assert row[4] == "zero at mlp_hidden"
        assert row[5:] == ["8", "-1.00", "-9.00", "0.5", "64", "100", "2"]
        assert "Seed 11" in page.text
        assert page.row("cluster-athlete")[1] == "2"

    def test_baselines(self, page):
        assert page.row("prompts.jsonl", "athlete")[2:] == ["2", "1", "-1.25", "50%"]
        assert page.row("prompts.jsonl", "artist")[2:] == ["1", "1", "-1.00", "100%"]

    def test_hypothesis_b(self, page):
        """Own drop 2.00 with error 0.8165 / 2; others 0.25; random neurons 0.1 and 0.3."""
        row = page.row("scale", "athlete", "athlete", "7")
        assert row[4:] == ["1", "2.00 ± 0.41", "0.25 ± 0.00", "0.20 ± 0.10", "yes"]

    def test_whose_cluster_it_is_says_its_rule_and_not_its_name(self, folder):
        sweep = sweep_of({"athlete": falling(*ATHLETE_DROPS), "artist": falling(*ARTIST_DROPS)}, ARMS)
        sweep.attrs["cluster_topics"] = json.dumps({"cluster-athlete": "artist"})
        write_sweep(folder / "scale.h5", sweep)
        page = Page(write_report(folder).read_text(encoding="utf-8"))
        assert page.row("scale", "athlete")[2:6] == ["artist", "7", "1", "0.25 ± 0.00"]

    def test_hypothesis_a(self, page):
        """The monotone fit of -1, -3, -2 is -1, -2.5, -2.5, which leaves .5 of 2."""
        assert page.row("general", "athlete") == ["general", "athlete", "-1.00", "-6.00", "1.00", "yes"]
        assert page.row("general", "artist") == ["general", "artist", "-1.00", "-2.00", "0.75", "no"]

    def test_agreement_of_two_halves(self, source, page):
        for topic in ("athlete", "artist"):
            parts = ScoreFile(source / "scores.h5").array(topic, "replicates").reshape(4, -1).astype(float)
            one, two = (parts[0] + parts[2]) / 2, (parts[1] + parts[3]) / 2
            first, second = (set(sorted(range(180), key=lambda i: -half[i])[:100]) for half in (one, two))
            (row,) = [row for row in page.rows if row[0] == topic and len(row) == 3 and row[1].endswith("%")]
            assert row[1:] == [f"{len(first & second)}%", f"{np.corrcoef(one, two)[0, 1]:.2f}"]

    def test_overlap_of_topics(self, source, page):
        file = ScoreFile(source / "scores.h5")
        scored = {topic: file.array(topic, "score").ravel()[:170] for topic in ("artist", "athlete")}
        tops = [set(np.argsort(-score)[:100].tolist()) for score in scored.values()]
        ranks = [np.argsort(np.argsort(score)) for score in scored.values()]
        assert page.row("artist, athlete")[1:] == [
            f"{len(tops[0] & tops[1])} of 100",
            f"{np.corrcoef(*ranks)[0, 1]:.2f}",
        ]

    def test_the_same_files_give_the_same_page_where_it_is_told(self, source, page, tmp_path):
        assert write_report(source, tmp_path / "other.html") == tmp_path / "other.html"
        assert (tmp_path / "other.html").read_text(encoding="utf-8") == page.html
        assert (source / "report.html").read_text(encoding="utf-8") == page.html


def test_html_in_names_is_text(tmp_path):
    topics = ["<b>rock & roll", 'the "best" <i>']
    name = "<script>alert(1)<!--"
    write_scores(tmp_path / "s.h5", MODEL | {"name": name}, {topic: scores_of(1) for topic in topics}, keep=False)
    Cluster(((0, 1),), rule={"topic": topics[0]}).save(tmp_path / "cluster.json")
    write_prompts(tmp_path / "p.jsonl", [Prompt(topic, "the", " a") for topic in topics])
    records = {topic: falling([1.0, 2.0], [0.0, 0.1]) for topic in topics}
    write_sweep(tmp_path / "w.h5", sweep_of(records, [f"cluster-{topics[0]}", "everything"]))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.elements} & {"script", "i"} == set()
    assert name in page.text
    for topic in topics:
        assert [topic, "score", "95% interval", "from"] in page.rows
        assert page.row("p.jsonl", topic)
    assert page.row("w", topics[0], topics[0], "7") and page.row("w", topics[1])


class TestFolders:
    def test_scores_alone_give_a_page(self, tmp_path):
        write_scores(tmp_path / "s.h5", MODEL, {"athlete": scores_of(1)}, keep=False)
        page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
        assert "No sweeps in this folder" in page.text
        assert ["athlete", "score", "95% interval", "from"] in page.rows

    def test_prompts_without_baselines_and_one_replicate_give_a_page(self, tmp_path):
        scores = scores_of(1)
        scores.replicates[1:] = np.nan
        write_scores(tmp_path / "s.h5", MODEL, {"athlete": scores}, keep=False)
        write_prompts(tmp_path / "p.jsonl", [Prompt("athlete", "the", " race")])
        page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
        assert page.row("p.jsonl", "athlete")[2:4] == ["1", "1"]

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(ShapleyError, match=r"no folder .*/nowhere"):
            write_report(tmp_path / "nowhere")

    def test_a_file_is_not_a_folder(self, folder):
        with pytest.raises(ShapleyError, match=r"no folder .*scores\.h5"):
            write_report(folder / "scores.h5")

    def test_no_score_file(self, folder):
        (folder / "scores.h5").unlink()
        with pytest.raises(ShapleyError, match=r"must hold one score file, found none"):
            write_report(folder)
        assert not (folder / "report.html").exists()

    def test_two_score_files(self, folder):
        write_scores(folder / "again.h5", MODEL, {"athlete": scores_of(1)}, keep=False)
        with pytest.raises(ShapleyError, match=r"found again\.h5, scores\.h5: keep each in a folder of its own"):
            write_report(folder)

    def test_a_broken_file_is_named(self, folder):
        (folder / "scale.h5").write_bytes((folder / "scale.h5").read_bytes()[:-500])
        with pytest.raises(ShapleyError, match=r"scale\.h5"):
            write_report(folder)


class TestSplitHalf:
    one, two = np.array([5.0, 4, 3, 2, 1, 0]), np.array([5.0, 1, 4, 2, 3, 0])

    def written(self, tmp_path, *replicates):
        replicates = np.array(replicates, dtype=np.float32)[:, None]
        flat = np.zeros((1, 6))
        scores = TopicScores(flat, flat, flat.astype(int), flat.astype(int), replicates, topic_attrs())
        write_scores(tmp_path / "s.h5", MODEL, {"t": scores}, keep=False)
        return ScoreFile(tmp_path / "s.h5")

    @pytest.mark.parametrize(("k", "shared"), [(1, 1.0), (2, 0.5), (4, 0.75), (6, 1.0), (100, 1.0)])
    def test_by_hand(self, tmp_path, k, shared):
        """Tops {0, 1} and {0, 2}; {0, 1, 2, 3} and {0, 2, 4, 3}. Deviations from 2.5 multiply to 10.5 of 17.5."""
        file = self.written(tmp_path, self.one + 1, self.two - 2, self.one - 1, self.two + 2)
        found = split_half(file, "t", k)
        assert found == {"shared": shared, "correlation": pytest.approx(10.5 / 17.5), "k": min(k, 6)}

    def test_empty_groups_are_left_out(self, tmp_path):
        nothing = np.full(6, np.nan)
        file = self.written(tmp_path, nothing, self.one, nothing, self.two, nothing)
        assert split_half(file, "t", 2)["shared"] == 0.5

    @pytest.mark.filterwarnings("ignore:Mean of empty slice")
    def test_neurons_that_a_half_has_not_seen_are_left_out(self, tmp_path):
        two = self.two.copy()
        two[0] = np.nan
        found = split_half(self.written(tmp_path, self.one, two), "t", 2)
        assert found["shared"] == 0.5  # {1, 2} and {2, 4}
        assert found["correlation"] == pytest.approx(np.corrcoef(self.one[1:], two[1:])[0, 1])

    def test_one_group_has_no_halves(self, tmp_path):
        found = split_half(self.written(tmp_path, self.one), "t", 2)
        assert math.isnan(found["shared"]) and math.isnan(found["correlation"])


class TestFigures:
    records = (("athlete", falling(*ATHLETE_DROPS)), ("artist", falling(*ARTIST_DROPS)))
    sweep = sweep_of(dict(records), ARMS)

    def test_a_sweep_shows_every_topic_and_dashed_its_controls(self):
        (axes,) = sweep_figure(self.sweep).axes
        drawn = [line.get_ydata().tolist() for line in axes.get_lines()]
        np.testing.assert_allclose(drawn, [[-1, -2, -3], [-1, -1.1, -1.2], [-1, -1.125, -1.25], [-1, -1, -1]])
        assert [line.get_linestyle() for line in axes.get_lines()] == ["-", "--", "-", "--"]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["athlete", "artist"]
        assert axes.get_title() == "cluster-athlete (7 of mlp_hidden)"
        assert axes.get_xlabel() == "scale strength"

    def test_specificity_is_the_change_from_the_untouched_model(self):
        (axes,) = specificity_figure(self.sweep).axes
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        np.testing.assert_allclose(lines["athlete prompts"], [0, -1, -2])
        np.testing.assert_allclose(lines["artist prompts"], [0, -0.125, -0.25])
        np.testing.assert_allclose(lines["athlete, random neurons"], [0, -0.1, -0.2])

    def test_top_neurons_from_best_to_worst(self):
        grid = np.array([[0.5, np.nan, 3.0], [2.0, -1.0, 1.0]])
        exact = np.array([[True, True, True], [False, True, True]])
        (axes,) = top_figure({"athlete": Ranking(grid, grid / 10)}, 3, {"athlete": grid / 5}, {"athlete": exact}).axes
        full, hollow = axes.containers
        assert full.lines[0].get_xdata().tolist() == [3, 1] and hollow.lines[0].get_xdata().tolist() == [2]
        assert hollow.lines[0].get_markerfacecolor() == "white"
        (bar,) = hollow.lines[2][0].get_segments()
        np.testing.assert_allclose(bar[:, 0], [1.6, 2.4])
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0.2", "1.0", "1.2"]
        assert axes.get_title() == "athlete"

    def test_layers_sum_positive_and_negative_scores(self):
        grid = np.array([[0.5, np.nan, 3.0, -1.0], [2.0, -1.0, -1.0, 0.0]])
        (axes,) = layers_figure({"athlete": grid}).axes
        assert [bar.get_height() for bar in axes.patches] == pytest.approx([3.5, 2.0, -1.0, -2.0])

    def test_no_topic_is_left_out_however_many_there_are(self):
        topics = [f"topic-{i}" for i in range(9)]
        sweep = sweep_of({topic: falling([1.0, 2.0]) for topic in topics}, ["everything"])
        grid = np.ones((2, 3))
        same, all_exact = dict.fromkeys(topics, grid), dict.fromkeys(topics, grid > 0)
        tops = ({topic: Ranking(grid, grid) for topic in topics}, 2, same, all_exact)
        drawn = {
            "sweep": [text.get_text() for text in sweep_figure(sweep).axes[0].get_legend().get_texts()],
            "top": [axes.get_title() for axes in top_figure(*tops).axes],
            "layers": [axes.get_title() for axes in layers_figure(dict.fromkeys(topics, grid)).axes],
        }
        assert drawn == {"sweep": topics, "top": topics, "layers": topics}

    @pytest.mark.parametrize(("name", "start"), [("f.png", b"\x89PNG"), ("f.PNG", b"\x89PNG"), ("f.svg", b"<?xml")])
    def test_saved_in_the_format_of_its_name(self, tmp_path, name, start):
        save(sweep_figure(self.sweep), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(ShapleyError, match=r"the folder .*/nowhere does not exist"):
            save(sweep_figure(self.sweep), tmp_path / "nowhere" / "f.png")


@pytest.mark.parametrize("module", ["report", "plots", "store"])
def test_stored_files_are_read_without_torch(module):
    code = f"import sys, json, shapley.{module}; print(json.dumps([name for name in sys.modules if name == 'torch']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
