"""Keywords against the log-odds ratio of Monroe, Colaresi and Quinn 2008 written out here, and what is left out."""

from __future__ import annotations

import math
import random

import pytest

from shapley.keywords import topic_keywords

FILLER = "table window stone river paper candle basket ladder copper velvet".split()
OWN = {"farm": "barley tractor harvest cattle", "sea": "harbour anchor sailor lagoon", "sky": "pilot glider cockpit"}


def corpus(seed=0, topics=tuple(OWN)):
    """Texts of shared words in which each topic's own words are more frequent, not exclusive."""
    rng = random.Random(seed)
    everything = [word for words in OWN.values() for word in words.split()] + FILLER
    return {
        topic: [
            " ".join(rng.choices(everything, k=20) + rng.choices(OWN[topic].split(), k=rng.randint(1, 6)))
            for _ in range(30)
        ]
        for topic in topics
    }


def z_by_definition(documents, topic, word, prior_words=1000.0):
    """Eqs. 15, 20 and 22 with the corpus as prior: alpha_w is the word's share of ``prior_words`` pseudo-words."""
    inside = [w.lower() for text in documents[topic] for w in text.split()]
    outside = [w.lower() for other, texts in documents.items() if other != topic for t in texts for w in t.split()]
    y_i, y_j, n_i, n_j = inside.count(word), outside.count(word), len(inside), len(outside)
    alpha = prior_words * (y_i + y_j) / (n_i + n_j)
    delta = math.log((y_i + alpha) / (n_i + prior_words - y_i - alpha))
    delta -= math.log((y_j + alpha) / (n_j + prior_words - y_j - alpha))
    variance = 1 / (y_i + alpha) + 1 / (y_j + alpha)
    return delta / math.sqrt(variance)


def words_of(documents, topic, **options):
    return [keyword.word for keyword in topic_keywords(documents, topic, **options)]


def with_words(*added, n=60):
    """Two topics that differ in the words added to the first."""
    rest = "the table stood by the window near the river"
    return {"one": [f"{rest} {' '.join(added)}"] * n, "two": [f"{rest} {' '.join(FILLER[:3])}"] * n}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("topic", OWN)
def test_z_is_that_of_the_paper(topic, seed):
    documents = corpus(seed)
    everything = {word for texts in documents.values() for text in texts for word in text.split()}
    expected = {word: z for word in everything if (z := z_by_definition(documents, topic, word)) >= 1.96}
    found = topic_keywords(documents, topic)
    assert {keyword.word: keyword.z for keyword in found} == pytest.approx(expected)
    assert len(found) >= 2
    assert [keyword.z for keyword in found] == sorted(expected.values(), reverse=True)


def test_documents_are_counted_once_a_text():
    documents = corpus()
    for keyword in topic_keywords(documents, "farm"):
        assert keyword.documents == sum(keyword.word in text.split() for text in documents["farm"])


def test_a_capital_at_the_start_of_a_sentence_counts_as_the_word():
    documents = with_words("barley")
    documents["one"][3] = documents["one"][3].replace("barley", "Barley")
    [found] = [keyword for keyword in topic_keywords(documents, "one") if keyword.word == "barley"]
    assert found.z == pytest.approx(z_by_definition(documents, "one", "barley"))


def test_names_are_left_out():
    assert "barley" in words_of(with_words("barley"), "one")
    documents = with_words("Barley")
    documents["one"][:25] = with_words("barley")["one"][:25]
    assert "barley" not in words_of(documents, "one")


@pytest.mark.parametrize("word", ["his", "herself", "were", "through", "years"])
def test_function_words_are_left_out(word):
    documents = with_words(word, word, "barley")
    assert z_by_definition(documents, "one", word) > 1.96
    assert words_of(documents, "one") == ["barley"]


def test_words_of_few_documents_are_left_out():
    documents = with_words(n=20)
    documents["one"][:3] = [text + " barley" * 8 for text in documents["one"][:3]]
    assert z_by_definition(documents, "one", "barley") > 1.96
    assert "barley" not in words_of(documents, "one")
    assert "barley" in words_of(documents, "one", least_documents=3)


def test_weak_words_are_left_out():
    documents = {"one": ["table window stone"] * 40, "two": ["table window paper"] * 40}
    documents["one"][:10] = ["table window copper"] * 10
    documents["two"][:8] = ["table window copper"] * 8
    assert 0 < z_by_definition(documents, "one", "copper") < 1.96
    assert words_of(documents, "one") == ["stone"]


def test_most_cuts_the_weakest():
    documents = corpus()
    assert words_of(documents, "farm", most=2) == words_of(documents, "farm")[:2]
    assert words_of(documents, "farm", most=0) == []


def test_ties_are_in_alphabetical_order():
    assert words_of(with_words("tractor", "barley", "harvest"), "one") == ["barley", "harvest", "tractor"]


def test_of_two_topics_each_has_the_opposite_sign_of_the_other():
    documents = corpus(topics=("farm", "sea"))
    farm, sea = words_of(documents, "farm"), words_of(documents, "sea")
    assert farm and sea and not set(farm) & set(sea)
    for word in farm:
        assert z_by_definition(documents, "sea", word) == pytest.approx(-z_by_definition(documents, "farm", word))


def test_topics_that_mirror_each_other_have_the_same_evidence():
    pairs = list(zip(OWN["farm"].split(), OWN["sea"].split(), strict=True))
    mirror = dict(pairs) | {sea: farm for farm, sea in pairs}
    farm = corpus(topics=("farm",))["farm"]
    documents = {"farm": farm, "sea": [" ".join(mirror.get(word, word) for word in text.split()) for text in farm]}
    expected = {mirror[keyword.word]: keyword.z for keyword in topic_keywords(documents, "farm")}
    assert len(expected) >= 2
    assert {keyword.word: keyword.z for keyword in topic_keywords(documents, "sea")} == pytest.approx(expected)


def test_every_other_topic_is_the_background():
    documents = corpus()
    merged = {"farm": documents["farm"], "rest": documents["sea"] + documents["sky"]}
    assert topic_keywords(documents, "farm") == topic_keywords(merged, "farm")
