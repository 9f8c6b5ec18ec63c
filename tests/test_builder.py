"""Prompts built from a small corpus whose keywords and sentences are known, matching on loss, and reading corpora."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest

from shapley.builder import build_prompts, match_on_loss, read_corpus
from shapley.errors import ShapleyError
from shapley.keywords import topic_keywords
from shapley.prompts import Prompt

OWN = {
    "farm": "barley tractor harvest orchard pasture cattle".split(),
    "sea": "harbour anchor sailor lagoon trawler rudder".split(),
    "sky": "pilot glider cockpit propeller balloon runway".split(),
}


def sentences(day, first, second, road="road", whom="them"):
    return [
        f"On day {day} the long {road} was empty of people.",
        f"At noon {day} of {whom} met beside the old bridge with a {first} in hand.",
        f"In the evening {day} went home to rest and a {second} came with all of them!",
    ]


def texts(words, n=24, **options):
    return [" ".join(sentences(i, words[i % len(words)], words[(i + 1) % len(words)], **options)) for i in range(n)]


def corpus(**options):
    return {topic: texts(words, **options) for topic, words in OWN.items()}


def words_in(text):
    return len(text.split())


def built(documents=None, topics=tuple(OWN), count_tokens=words_in, **options):
    return build_prompts(documents or corpus(), topics, count_tokens, **options)


def source_text(documents, prompt):
    """The only text that goes on from the prompt with the answer."""
    [text] = [text for text in documents[prompt.topic] if prompt.prompt + prompt.answer in text]
    return text


def test_the_corpus_has_the_keywords_it_is_made_of():
    for topic, words in OWN.items():
        assert {keyword.word for keyword in topic_keywords(corpus(), topic)} == set(words)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_prompt_is_the_keywords_sentence_and_up_to_so_many_before_it(most):
    expected = set()
    for topic, words in OWN.items():
        for i in range(24):
            pair = words[i % 6], words[(i + 1) % 6]
            for place, word in enumerate(pair, start=1):
                before = " ".join(sentences(i, *pair)[max(0, place + 1 - most) : place + 1])
                expected.add((topic, before[: before.index(f" {word}")], f" {word}"))
    found = {(p.topic, p.prompt, p.answer) for side in built(max_sentences=most) for p in side}
    assert found <= expected
    assert {(topic, answer) for topic, _, answer in found} == {(t, f" {w}") for t, words in OWN.items() for w in words}
    if most > 1:
        assert max(len(re.findall(r"[.!]", text)) for _, text, _ in found) == most - 1


@pytest.mark.parametrize("whom", ["Mr. Bell", "Dr. Bell", "J. Bell", "the St. Ives band", "house No. 5"])
def test_an_abbreviation_does_not_end_a_sentence(whom):
    firsts = [p for side in built(corpus(whom=whom), max_sentences=1) for p in side if "bridge" in p.prompt]
    assert firsts
    assert [prompt.prompt for prompt in firsts if not prompt.prompt.startswith("At noon")] == []


@pytest.mark.parametrize("end", ["Was it?", "It was!", 'They said "It was."', "It was 1998."])
def test_what_ends_a_sentence(end):
    documents = {topic: [text.replace("At noon", f"{end} At noon") for text in corpus()[topic]] for topic in OWN}
    firsts = [p for side in built(documents, max_sentences=1) for p in side if "bridge" in p.prompt]
    assert firsts
    assert [prompt.prompt for prompt in firsts if not prompt.prompt.startswith("At noon")] == []


@pytest.mark.parametrize("start", ["3 of the clocks struck and at noon", '"At noon', "(At noon", "'At noon"])
def test_what_starts_a_sentence(start):
    documents = {topic: [text.replace("At noon", start) for text in corpus()[topic]] for topic in OWN}
    firsts = [p for side in built(documents, max_sentences=1) for p in side if "bridge" in p.prompt]
    assert firsts
    assert [prompt.prompt for prompt in firsts if not prompt.prompt.startswith(start)] == []


def test_the_passage_goes_on_with_the_answer_as_a_word():
    words = [*OWN["farm"][:3], "barleycorn", *OWN["farm"][3:]]
    documents = corpus() | {"farm": texts(words, 28)}
    for prompt in [p for side in built(documents) for p in side]:
        rest = source_text(documents, prompt).split(prompt.prompt, 1)[1]
        assert re.match(rf" {prompt.answer.strip()}\b", rest)
        assert prompt.answer.strip() in {"farm": words}.get(prompt.topic, OWN[prompt.topic])


@pytest.mark.parametrize(
    ("keyword", "form"),
    [
        ("barley", "barley-field"),
        ("barley", "Barley"),
        ("goal", "goals"),
        ("goals", "goal"),
        ("singer", "singing"),
        ("painted", "painting"),
        ("coaches", "coach"),
        ("running", "runner"),
        ("winning", "win"),
        ("company", "companies"),
        ("companies", "company"),
    ],
)
def test_the_keyword_or_a_form_of_it_is_not_in_the_prompt(keyword, form):
    words = [keyword, *OWN["farm"][1:]]
    plain, with_form = texts(words, 72), texts(words, 72, road=form)
    documents = corpus() | {"farm": [with_form[i] if i % 18 == 0 else text for i, text in enumerate(plain)]}
    sides = [side for seed in range(4) for side in built(documents, ["farm"], seed=seed)]
    answered = [prompt.prompt for side in sides for prompt in side if prompt.answer == f" {keyword}"]
    assert answered
    assert [prompt for prompt in answered if f" {form} " in prompt] == []


@pytest.mark.parametrize(("n_tokens", "kept"), [(7, False), (8, True), (96, True), (97, False)])
def test_prompts_have_eight_to_ninety_six_tokens(n_tokens, kept):
    found = built(count_tokens=lambda text: n_tokens if "evening" in text else 20)
    assert any("evening" in p.prompt for side in found for p in side) == kept
    assert all(any("evening" not in p.prompt for p in side) for side in found)


def test_the_limit_on_tokens_can_be_chosen():
    lengths = [words_in(p.prompt) for side in built(max_tokens=25) for p in side]
    assert 20 < max(lengths) <= 25 < max(words_in(p.prompt) for side in built() for p in side)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["small", "embedded"])
def test_no_text_and_no_keyword_is_on_both_sides(name, seed):
    documents = corpus() if name == "small" else read_corpus(name)
    selection, held_out = built(documents, list(documents), seed=seed)
    for topic in documents:
        ours, theirs = ([p for p in side if p.topic == topic] for side in (selection, held_out))
        assert ours and theirs
        assert not {p.answer for p in ours} & {p.answer for p in theirs}
        assert not {source_text(documents, p) for p in ours} & {source_text(documents, p) for p in theirs}


def test_a_word_typical_of_two_topics_is_a_keyword_of_one():
    shared = {"farm": [*OWN["farm"], "ferry"], "sea": [*OWN["sea"], "ferry"]}
    documents = {topic: texts(sorted(words), n=28) for topic, words in shared.items()} | {"sky": texts(OWN["sky"], 96)}
    selection, held_out = built(documents)
    topics = {p.topic for side in (selection, held_out) for p in side if p.answer == " ferry"}
    assert len(topics) == 1 and topics < {"farm", "sea"}
    assert not {p.answer for p in selection} & {p.answer for p in held_out}


def test_half_of_the_keywords_go_to_each_side():
    for side in built():
        assert Counter(topic for topic, _ in {(p.topic, p.answer) for p in side}) == dict.fromkeys(OWN, 3)


@pytest.mark.parametrize("topics", [["sea"], ["sky", "sea"], ["sea", "farm", "sky"]])
def test_the_split_does_not_depend_on_the_topics_asked_for(topics):
    for some, everything in zip(built(topics=topics), built(), strict=True):
        assert list(dict.fromkeys(p.topic for p in some)) == topics
        for topic in topics:
            assert [p for p in some if p.topic == topic] == [p for p in everything if p.topic == topic]


@pytest.mark.parametrize("n", [1, 4, 1000])
def test_per_topic_is_the_start_of_all(n):
    for some, everything in zip(built(per_topic=n), built(), strict=True):
        for topic in OWN:
            whole = [p for p in everything if p.topic == topic]
            assert [p for p in some if p.topic == topic] == whole[:n]


def test_keywords_are_dealt_out_in_turn():
    for side in built():
        for topic in OWN:
            assert len({p.answer for p in [p for p in side if p.topic == topic][:3]}) == 3


def test_a_frequent_keyword_does_not_crowd_out_the_others():
    words = ["barley"] * 5 + OWN["farm"][1:]
    selection, held_out = built(corpus() | {"farm": texts(words, 60)}, ["farm"])
    for side in (selection, held_out):
        n_keywords = len({p.answer for p in side})
        assert n_keywords >= 2
        assert len({p.answer for p in side[:n_keywords]}) == n_keywords


def test_the_same_seed_gives_the_same_prompts_and_another_others():
    assert built(seed=3) == built(seed=3)
    documents = corpus()
    halves = [frozenset(source_text(documents, p) for p in built(documents, seed=seed)[0]) for seed in range(4)]
    assert len(set(halves)) == 4


def test_a_prompt_names_its_topic_and_its_text():
    by_source = {}
    documents = corpus()
    for prompt in [p for side in built(documents) for p in side]:
        by_source.setdefault(prompt.source, set()).add(source_text(documents, prompt))
        assert prompt.known is None and prompt.logprob is None
    assert all(len(found) == 1 for found in by_source.values())
    ids = [p.id for side in built() for p in side]
    assert len(set(ids)) == len(ids)


def test_an_unknown_topic_names_the_nearest():
    with pytest.raises(ShapleyError, match=r"unknown topic 'farms': did you mean 'farm'\?"):
        built(topics=["sea", "farms"])


def test_a_corpus_of_one_topic_is_refused():
    with pytest.raises(ShapleyError, match="only one"):
        built({"farm": corpus()["farm"]}, ["farm"])


@pytest.mark.parametrize("own", [["They stood by."] * 30, corpus()["farm"][:5], texts(["walrus"])])
def test_a_topic_that_yields_nothing_is_refused_by_name(own):
    with pytest.raises(ShapleyError, match=rf"topic 'thin' yields no prompts .*{len(own)} texts"):
        built(corpus() | {"thin": own}, ["sea", "thin"])


class TestMatchOnLoss:
    @staticmethod
    def scored(topic, *logprobs):
        return [Prompt(topic, f"{topic} {i}", " x", logprob=logprob) for i, logprob in enumerate(logprobs)]

    def test_two_bands_by_hand(self):
        """The median lies between -1.3 and -5: three and one above it, one and three below."""
        farm = self.scored("farm", -1.0, -5.0, -1.1, -1.2)
        sea = self.scored("sea", -5.1, -1.3, -5.2, -5.3)
        assert match_on_loss([*farm, *sea], n_bins=2) == [farm[0], farm[1], sea[0], sea[1]]

    def test_every_band_holds_as_many_of_every_topic_as_the_rarest_has(self):
        rng = random.Random(0)
        prompts = self.scored("farm", *(rng.gauss(-2, 1) for _ in range(100)))
        prompts += self.scored("sea", *(rng.gauss(-3, 1) for _ in range(60)))
        rng.shuffle(prompts)
        rank = {p: i for i, p in enumerate(sorted(prompts, key=lambda p: p.logprob))}
        kept = match_on_loss(prompts)
        counts = Counter((rank[p] // 20, p.topic) for p in prompts)
        expected = {band: min(counts[band, "farm"], counts[band, "sea"]) for band in range(8)}
        for topic in ("farm", "sea"):
            assert {band: sum(rank[p] // 20 == band for p in kept if p.topic == topic) for band in range(8)} == expected
        assert kept == [p for p in prompts if p in set(kept)]

    def test_equal_topics_lose_nothing(self):
        prompts = self.scored("farm", -1, -2, -3, -4) + self.scored("sea", -1, -2, -3, -4)
        assert match_on_loss(prompts) == prompts

    def test_no_prompts_stay_no_prompts(self):
        assert match_on_loss([]) == []

    def test_unscored_prompts_are_refused(self):
        with pytest.raises(ShapleyError, match="scored"):
            match_on_loss([*self.scored("farm", -1.0), Prompt("sea", "a", " b")])


class TestCorpusFiles:
    @staticmethod
    def read(tmp_path, text, *columns, encoding="utf-8"):
        path = tmp_path / "corpus.csv"
        path.write_bytes(text.encode(encoding))
        return read_corpus(str(path), *columns)

    def test_texts_by_topic_in_order(self, tmp_path):
        text = 'text,id,topic\n"One, two.",1,sea\nThree.,2,farm\n"Four\n  five.",3,sea\n'
        assert self.read(tmp_path, text) == {"sea": ["One, two.", "Four five."], "farm": ["Three."]}

    def test_columns_can_be_named(self, tmp_path):
        assert self.read(tmp_path, "body,label\nOne.,sea\n", "body", "label") == {"sea": ["One."]}

    def test_rows_without_a_topic_or_text_are_left_out(self, tmp_path):
        assert self.read(tmp_path, "topic,text\nsea,One.\n,Two.\nfarm,\nsky,  \nsea\n") == {"sea": ["One."]}

    def test_text_is_read_as_utf8(self, tmp_path):
        assert self.read(tmp_path, "topic,text\nsea,Zoë.\n") == {"sea": ["Zoë."]}

    @pytest.mark.parametrize(("header", "missing"), [("topic,body", "text"), ("label,text", "topic"), ("a,b", "text")])
    def test_a_missing_column_is_refused_with_the_header(self, tmp_path, header, missing):
        with pytest.raises(ShapleyError, match=rf"no column {missing}.*{header[:4].split(',')[0]}.*--text-column"):
            self.read(tmp_path, f"{header}\nsea,One.\n")

    def test_a_missing_file_is_refused_with_the_names_there_are(self, tmp_path):
        with pytest.raises(ShapleyError, match=r"no corpus at .*gone\.csv.*embedded.*dbpedia_14"):
            read_corpus(str(tmp_path / "gone.csv"))

    def test_a_folder_and_bytes_that_are_no_text_are_refused(self, tmp_path):
        with pytest.raises(ShapleyError, match="cannot read corpus"):
            read_corpus(str(tmp_path))
        with pytest.raises(ShapleyError, match="cannot read corpus"):
            self.read(tmp_path, "topic,text\nsea,Zoë.\n", encoding="latin-1")

    @pytest.mark.parametrize("text", ["topic,text\n", "topic,text\nsea,\n"])
    def test_a_corpus_without_texts_is_refused(self, tmp_path, text):
        with pytest.raises(ShapleyError, match="holds no texts"):
            self.read(tmp_path, text)


class FakeDataset(dict):
    """Columns by name, and features of which only a class label has names."""

    def __init__(self, names, **columns):
        super().__init__(columns)
        self.features = {name: SimpleNamespace(dtype="any") for name in columns}
        if names:
            self.features["label"].names = names


@pytest.fixture
def hub(monkeypatch):
    """A ``datasets`` module that serves what is put into the returned dictionary."""
    served = {}
    fake = ModuleType("datasets")

    def load_dataset(name, *, split):
        if (name, split) not in served:
            raise ConnectionError("no route to hub")
        return served[name, split]

    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return served


def test_dbpedia_topics_are_its_class_names(hub):
    hub["fancyzhx/dbpedia_14", "test"] = FakeDataset(
        ["Company", "Artist", "Athlete"], label=[2, 0, 2], title=["A", "B", "C"], content=[" One  two.", "Three.", "4."]
    )
    assert read_corpus("fancyzhx/dbpedia_14") == {"Athlete": ["One two.", "4."], "Company": ["Three."]}


def test_comments_are_toxic_from_half_of_the_raters_on(hub):
    hub["google/civil_comments", "test"] = FakeDataset(
        None, text=["a", "b", "c", "d"], toxicity=[0.0, 0.5, 0.49, 1.0], insult=[1.0, 0.0, 1.0, 0.0]
    )
    assert read_corpus("toxic-comments") == {"harmless": ["a", "c"], "toxic": ["b", "d"]}


@pytest.mark.parametrize("name", ["fancyzhx/dbpedia_14", "toxic-comments"])
def test_a_hub_that_cannot_be_reached_is_one_line(hub, name):
    with pytest.raises(ShapleyError, match=r"^cannot fetch \S+: ConnectionError: no route to hub$"):
        read_corpus(name)


@pytest.mark.parametrize("name", ["fancyzhx/dbpedia_14", "toxic-comments"])
def test_without_the_datasets_package_the_extra_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ShapleyError, match=r"datasets package: pip install 'neuron-shapley\[hub-data\]'"):
        read_corpus(name)


def test_held_out_with_the_selections_keywords():
    selection, held_out = built(same_keywords=True)
    assert selection == built()[0]
    for topic in OWN:
        chosen, other = ([p for p in side if p.topic == topic] for side in (selection, held_out))
        assert {p.answer for p in other} and {p.answer for p in other} <= {p.answer for p in chosen}
        assert not {p.source for p in chosen} & {p.source for p in other}
