"""Terms for BM25: what they were stays what it was, and scripts without spaces become pairs of characters."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes.errors import InputError
from indexes.index import Index
from retrieval.analyzer import Analyzer, bigrams, usual_analyzer
from retrieval.building import build_index
from retrieval.documents import Document
from retrieval.lexical_retriever import LexicalRetriever, build_lexical
from retrieval.retriever import Retriever

CHINESE = {
    "tea": "绿茶最好用八十度的水泡两三分钟。",
    "git": "要撤销最后一次提交，请运行 git reset 命令。",
    "python": "虚拟环境把一个项目的软件包与其他项目分开。",
}
JAPANESE = {
    "tea": "緑茶は八十度のお湯で二、三分いれるのが一番です。",
    "git": "最後のコミットを取り消すには git reset を実行します。",
    "python": "仮想環境はプロジェクトのパッケージを分けておきます。",
}


def old_terms(text):
    return re.findall(r"\b\w\w+\b", text.lower())


@given(st.text(alphabet=st.characters(max_codepoint=0x10FF, exclude_categories=("Cs",))))
def test_texts_without_cjk_have_the_terms_they_had(text):
    assert Analyzer("none+cjk").terms(text) == Analyzer("none").terms(text) == old_terms(text)
    assert Analyzer("english+cjk").terms(text) == Analyzer("english").terms(text)


@given(st.text())
def test_an_analyzer_without_cjk_is_what_it_was(text):
    assert list(Analyzer("none").terms(text)) == old_terms(text)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("我是中国人", ["我是", "是中", "中国", "国人"]),  # Lucene's TestCJKAnalyzer, as are the three below
        ("一二三四五六七八九十", ["一二", "二三", "三四", "四五", "五六", "六七", "七八", "八九", "九十"]),
        ("あいabcうえ", ["abc", "あい", "うえ"]),
        ("テスト", ["テス", "スト"]),
        ("一", ["一"]),
        ("한국어 검색", ["한국", "국어", "검색"]),
        ("ｶﾞﾗｽ と か\u3099", ["ガラ", "ラス", "と", "が"]),
        ("ＰＹＴＨＯＮ３", ["python3"]),
        ("running 中文 the cats", ["run", "cat", "中文"]),
        ("𠀀𠀁𠀂", ["𠀀𠀁", "𠀁𠀂"]),
        ("サーバー、々。", ["サー", "ーバ", "バー", "々"]),
    ],
)
def test_scripts_without_spaces_become_pairs(text, terms):
    assert Analyzer().terms(text) == terms


def test_a_document_and_a_part_of_it_share_terms():
    assert set(bigrams("中国人")) <= set(bigrams("我是中国人民"))
    assert (bigrams("一"), bigrams("一二")) == (["一"], ["一二"])


def test_names():
    assert Analyzer().name == usual_analyzer().name == "english+cjk"
    assert usual_analyzer("german").name == usual_analyzer("german+cjk").name == "german+cjk"
    assert usual_analyzer("german").terms("Die Häuser") == ["die", "haus"]
    with pytest.raises(InputError, match="no stemmer for language 'klingon'; expected one of"):
        usual_analyzer("klingon")


@pytest.mark.parametrize(
    ("texts", "queries"),
    [
        (CHINESE, {"绿茶": "tea", "怎么撤销提交": "git", "项目的虚拟环境": "python"}),
        (JAPANESE, {"緑茶のいれ方": "tea", "コミットの取り消し": "git", "仮想環境とは": "python"}),
    ],
)
@pytest.mark.parametrize("language", [None, "none", "german"])
def test_bm25_finds_chinese_and_japanese(tmp_path, texts, queries, language):
    documents = [Document(name, text) for name, text in texts.items()]
    build_lexical(documents, tmp_path / "i", language=language)
    found = LexicalRetriever.open(tmp_path / "i").search_many(list(queries), k=1)
    assert [hits[0].id for hits in found] == list(queries.values())


def test_an_index_keeps_the_rules_that_it_was_built_by(tmp_path, encoder):
    """Folders from before say `english`: they are searched, and added to, as they were."""
    from indexes.segments import Entry

    documents = [Document("whole", "绿茶 green tea"), Document("other", "black tea")]
    vectors = encoder.encode_corpus(documents, tmp_path / "v")
    before = Analyzer("english")
    entries = [Entry(one.id, before.terms(one.content), one.content) for one in documents]
    Index.build(vectors, "Flat", tmp_path / "old", entries=entries, analyzer="english")
    old = Retriever.open(tmp_path / "old", encoder)
    assert [hit.id for hit in old.search("绿茶", mode="lexical")] == ["whole"]
    assert old.search("喝绿茶", mode="lexical") == []
    old.add([("more", "红茶")])
    assert [hit.id for hit in old.search("红茶", mode="lexical")] == ["more"]
    assert old.search("喝红茶", mode="lexical") == []
    new = Retriever(build_index(vectors, tmp_path / "new", documents=documents), encoder)
    assert new.index.reader.analyzer == "english+cjk"
    assert [hit.id for hit in new.search("喝绿茶", mode="lexical")] == ["whole"]
    new.add([("more", "红茶")])
    assert [hit.id for hit in new.search("喝红茶", mode="lexical")] == ["more"]
    for query in ("green tea", "black"):
        both = [[(hit.id, hit.score) for hit in one.search(query, mode="lexical")] for one in (old, new)]
        assert [name for name, _ in both[0]] == [name for name, _ in both[1]]
