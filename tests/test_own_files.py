"""Files of one's own, as spreadsheets, cameras, recorders and editors write them."""

import errno
import gzip
import io
import os
import random
import shutil
import struct
import sys
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_cli import mistake
from test_hostile import TINY, fit
from test_tables import DATA, class_folders, csv_of, parts_of, write_mnist, write_wav

import sample
import train
from minigpt.datasets import catalogue, formats, signals, tables, tasks, text
from minigpt.datasets.encodings import decoded
from minigpt.datasets.examples import load
from minigpt.datasets.tables import TableEncoder
from minigpt.nn import FAMILIES, model_class
from minigpt.nn.classifier import classifier
from minigpt.nn.gpt import GPTConfig
from minigpt.training import checkpoint


def read(path, content):
    """What read_csv makes of this content, and what it tells"""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = []
    return tables.read_csv(path, told.append), told


def encoded(path, rows, header="a,class", seed=0):
    """The Examples of a table of such rows, and what was told of it"""
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    told = []
    return load(str(path), "class", seed, DATA, told.append), told


# what kind a column is


@pytest.mark.parametrize("word", ["", "?", "NA", "N/A", "#N/A", "null", "None", "-", "nan", "NaN"])
@pytest.mark.parametrize("seed", range(4))  # the word falls into another part
def test_one_missing_word_among_200_numbers_is_missing_whatever_the_seed(tmp_path, word, seed):
    rows = [f"{word if i == 77 else i / 3},{'xy'[i % 2]}" for i in range(200)]
    examples, told = encoded(tmp_path / "a.csv", rows, seed=seed)
    assert "mean" in examples.encoder.columns[0] and told == []
    missing = [x[:, 0] == 0 for x, _ in parts_of(examples)]  # no number is the mean of all
    assert sum(part.sum() for part in missing) == 1
    assert examples.encoder.shape == [1 + missing[0].any()]  # training says whether any is


@pytest.mark.parametrize("seed", range(4))
def test_one_word_among_200_numbers_is_refused_by_column_and_line_whatever_the_seed(tmp_path, seed):
    rows = [f"{'old' if i == 77 else i},{'xy'[i % 2]}" for i in range(200)]
    with pytest.raises(ValueError, match="a.csv: line 79, column a: expected a number, got old; w"):
        encoded(tmp_path / "a.csv", rows, seed=seed)


def test_a_column_of_which_some_are_numbers_becomes_categories_and_that_is_told(tmp_path):
    rows = [f"{('2', '3', '4', '5more')[i % 4]},{'xy'[i % 3 == 0]}" for i in range(40)]
    examples, told = encoded(tmp_path / "a.csv", rows)
    assert examples.encoder.columns[0]["values"] == ["2", "3", "4", "5more"]
    where = f"{tmp_path / 'a.csv'}: line 5, column a"
    assert told == [f"{where}: 5more; 10 of 40 cells are no numbers, so it is read as categories"]


def test_none_and_a_dash_are_answers_among_words(tmp_path):
    rows = [f"{'+-'[i % 2]},{('none', 'some')[i // 2 % 2]},{'xy'[i % 3 == 0]}" for i in range(40)]
    examples, told = encoded(tmp_path / "a.csv", rows, "sign,guarantor,class")
    assert [c["values"] for c in examples.encoder.columns] == [["+", "-"], ["none", "some"]]
    assert told == []
    dashes, _ = encoded(
        tmp_path / "a.csv", [f"{'-' * (i % 2)},{'xy'[i // 2 % 2]}" for i in range(40)]
    )
    assert dashes.encoder.columns[0]["values"] == ["", "-"]


def test_a_class_may_be_a_dash_and_may_not_be_missing(tmp_path):
    examples, _ = encoded(tmp_path / "a.csv", [f"{i},{'+-'[i % 2]}" for i in range(20)])
    assert examples.classes == ["+", "-"]
    with pytest.raises(ValueError, match="a class in each row, got 10 rows without"):
        encoded(tmp_path / "a.csv", [f"{i},{('x', 'N/A')[i % 2]}" for i in range(20)])


def test_how_many_categories_there_are_does_not_depend_on_the_seed(tmp_path):
    rows = [f"n{i % 101},{'xy'[i % 2]}" for i in range(202)]
    for seed in range(4):
        with pytest.raises(ValueError, match="column a: expected 100 categories at most, got 101"):
            encoded(tmp_path / "a.csv", rows, seed=seed)


# how numbers are spelled


@pytest.mark.parametrize(
    "cell, delimiter, number",
    [
        ("5%", ",", 0.05),
        ("-12.5 %", ",", -0.125),
        ("1,000", ",", 1000),
        ("-1,234,567.5", ",", -1234567.5),
        ("1,5", ";", 1.5),
        ("1,234", ";", 1.234),
        ("0,5 %", ";", 0.005),
        ("+2,25", "\t", 2.25),
        (".5", ",", 0.5),
        ("1e3", ",", 1000),
        ("1,5", ",", None),
        ("1,23,456", ",", None),
        ("1,000,000", ";", None),
        ("1_0", ",", None),
        ("%", ",", None),
        ("", ",", None),
        ("5%%", ",", None),
    ],
)
def test_a_decorated_number_is_read_or_not_a_number(cell, delimiter, number):
    (plain,) = tables.without_commas([cell], delimiter)
    assert tables.number(plain) == (None if number is None else pytest.approx(number, rel=1e-12))


def test_a_comma_in_numbers_is_told_once_for_a_column(tmp_path):
    table, told = read(tmp_path / "a.csv", 'a,b\n900,u\n"1,000",v\n"2,000",w\n')
    assert table.columns == {"a": ["900", "1000", "2000"], "b": ["u", "v", "w"]}
    assert told == [f"{tmp_path / 'a.csv'}: line 3, column a: 1,000 is read as 1000"]


@pytest.mark.parametrize("cell", ["$5", "€ 3,20", "1 000", "1.234,5", "5 000 $", "1'000", "1,5"])
def test_what_only_looks_like_a_number_is_refused_by_name(tmp_path, cell):
    rows = [f'"{cell}",{"xy"[i % 2]}' for i in range(20)]
    with pytest.raises(ValueError) as raised:
        encoded(tmp_path / "a.csv", rows)
    need = f"line 2, column a: expected a number, got {cell}; write plain digits, or NA"
    assert need in str(raised.value)


@pytest.mark.parametrize("words", [["10-20", "20-30"], ["2024-01-02", "3.1.2"], ["3 cm", "4 cm"]])
def test_ranges_dates_and_units_are_categories(tmp_path, words):
    examples, _ = encoded(
        tmp_path / "a.csv", [f"{words[i % 2]},{'xy'[i // 2 % 2]}" for i in range(20)]
    )
    assert examples.encoder.columns[0]["values"] == sorted(words)


def test_numbers_with_and_without_percent_are_not_mixed(tmp_path):
    rows = [f"{i}{'%' * (i != 7)},{'xy'[i % 2]}" for i in range(20)]
    with pytest.raises(ValueError, match="line 9, column a: expected a number spelled like 0%, go"):
        encoded(tmp_path / "a.csv", rows)


def test_thousands_with_points_are_not_mixed_with_decimal_commas(tmp_path):
    words = "line 4, column a: expected a decimal comma or none, got 1.234; write 1234"
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "a.csv", "a;class\n1,5;x\n2;y\n1.234;x\n")


@pytest.mark.parametrize("mark", [".", ","])
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_what_may_be_a_thousand_or_a_fraction_is_refused_beside_whole_numbers(
    tmp_path, mark, delimiter
):
    rows = ["pay;y", "950;a", f"1{mark}485;b", f"-52{mark}000;a"]
    need = "a.csv: line 3, column pay: expected a number that can be read in one way beside 950, g"
    with pytest.raises(ValueError, match=need) as raised:
        read(tmp_path / "a.csv", "\n".join(rows).replace(";", delimiter))
    end = f"got 1{mark}485; write 1485, or add a 0 if it is a fraction"
    assert str(raised.value).endswith(end)


@pytest.mark.parametrize("cells, expected", [
    (["950", "1485", "1.4850"], [950, 1485, 1.485]),  # what the message advises
    (["950", "1.485", "2.5"], [950, 1.485, 2.5]),  # 2.5 is no thousand, so the point is decimal
    (["950", "1,485", "2,5"], [950, 1.485, 2.5]),
    (["0,485", "950"], [0.485, 950]),
    (["1.485", "52.000"], [1.485, 52]),  # in one unit or another, all of them alike
    (["1,485", "52,000"], [1.485, 52]),
])  # fmt: skip
def test_a_mark_that_is_clear_from_its_column_is_a_decimal_point_beside_semicolons(
    tmp_path, cells, expected
):
    table, _ = read(tmp_path / "a.csv", "\n".join(["pay;y", *(f"{cell};a" for cell in cells)]))
    assert list(map(tables.number, table.columns["pay"])) == expected


def test_a_point_beside_commas_is_a_decimal_point(tmp_path):
    table, told = read(tmp_path / "a.csv", "pay,y\n950,a\n1.485,b\n52.000,a\n")
    assert list(map(tables.number, table.columns["pay"])) == [950, 1.485, 52] and not told


@pytest.mark.parametrize("cell", ["0,563", "-0,563", "+0,125", "00,125", "0,000,001"])
def test_a_group_of_zeros_is_no_thousand(tmp_path, cell):
    rows = [f'"{cell if i == 3 else i}",{"xy"[i % 2]}' for i in range(20)]
    with pytest.raises(ValueError, match="line 5, column a: expected a number, got ") as raised:
        encoded(tmp_path / "a.csv", rows)
    assert f"got {cell}; write plain digits" in str(raised.value)


def test_the_minus_of_print_is_a_minus(tmp_path):
    cells = ["7", "\u22127", "\u22121,234.5", "\u22125%", "\u22120.5"]
    plain = tables.without_commas(cells, ",")
    assert list(map(tables.number, plain)) == [7, -7, -1234.5, -0.05, -0.5]
    cells = [f"\u2212{i}" if i % 2 else str(i) for i in range(300)]
    told = []
    encoder = TableEncoder.fit({"a": cells}, range(300), tell=told.append)
    mean = np.mean([-i if i % 2 else i for i in range(300)])
    assert encoder.columns[0]["mean"] == pytest.approx(mean) and not told


@pytest.mark.parametrize("cell", ["(7)", "(1,200)", "($7.50)", "–7"])
def test_a_negative_number_as_accounts_and_dashes_spell_it_is_refused_by_name(tmp_path, cell):
    rows = [f'"{cell if i % 4 == 0 else i}",{"xy"[i % 2]}' for i in range(40)]
    with pytest.raises(ValueError) as raised:
        encoded(tmp_path / "a.csv", rows)
    assert f"line 2, column a: expected a number, got {cell}; write plain" in str(raised.value)


def test_pairs_in_brackets_are_categories(tmp_path):
    rows = [f'"({i % 3},{i % 2})",{"xy"[i % 2]}' for i in range(40)]
    examples, _ = encoded(tmp_path / "a.csv", rows)
    assert len(examples.encoder.columns[0]["values"]) == 6


def test_a_new_table_is_read_as_that_of_training(tmp_path):
    rows = [f"{'-' if i == 3 else f'{i},5'};{'+-'[i % 2]};{'xy'[i % 2]}" for i in range(20)]
    examples, _ = encoded(tmp_path / "a.csv", rows, "a;sign;class")
    (tmp_path / "new.csv").write_text("a;sign\n-;-\n4,5;+")  # a dash of each kind
    first, last = examples.encoder.encode(tmp_path / "new.csv")
    a = examples.encoder.columns[0]
    flag = [1] if a["missing"] else []
    assert first.tolist() == [0, *flag, 0, 1]
    assert last.tolist() == [
        pytest.approx((4.5 - a["mean"]) / a["scale"]),
        *[0 for _ in flag],
        1,
        0,
    ]


# cells, columns, letters


@pytest.mark.parametrize(
    "header", ['"a,x,y";b', '"say ""a, b, c""";b', '"two\nlines, with, commas";b']
)
def test_delimiters_count_outside_quotes(tmp_path, header):
    table, _ = read(tmp_path / "a.csv", f"{header}\n1;2\n")
    assert [cells for cells in table.columns.values()] == [["1"], ["2"]]


@pytest.mark.parametrize("name", ["", "Unnamed: 0", '""'])
def test_an_unnamed_index_column_is_left_out_and_that_is_told(tmp_path, name):
    table, told = read(tmp_path / "a.csv", f"{name},a\n2,u\n0,v\n1,u\n")
    assert table.columns == {"a": ["u", "v", "u"]}
    assert told == [f"{tmp_path / 'a.csv'}: its first column only counts the rows: left out"]


@pytest.mark.parametrize("first, second", [
    ("Unnamed: 0", "Unnamed: 0.1"), ("Unnamed: 0.1", "Unnamed: 0"), ("", "Unnamed: 0"),
    ("", ""), ("Unnamed: 0.1.1", "Unnamed: 0.1"),
])  # fmt: skip
def test_both_index_columns_of_a_table_saved_twice_are_left_out(tmp_path, first, second):
    table, told = read(tmp_path / "a.csv", f"{first},{second},a\n2,0,u\n0,1,v\n1,2,u\n")
    assert table.columns == {"a": ["u", "v", "u"]}
    many = "its first 2 columns only count the rows: left out"
    assert told == [f"{tmp_path / 'a.csv'}: {many}"]


@pytest.mark.parametrize("content", [",a\n1,u\n1,v\n", ",a\n1.5,u\n2,v\n", "a,\n5,1\n6,2\n"])
def test_another_unnamed_column_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="line 1: expected a name for each column, got one withou"):
        read(tmp_path / "a.csv", content)


def test_an_index_alone_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="expected names of columns, got none"):
        read(tmp_path / "a.csv", "Unnamed: 0\n1\n2\n")


CHINESE = "姓名,年龄,城市\n张三,30,北京\n李四,41,上海\n王喆,25,广州\n"


def test_gb18030_is_read_where_utf_8_fails_and_that_is_told(tmp_path):
    expected, told = read(tmp_path / "a.csv", CHINESE)
    assert told == []
    table, told = read(tmp_path / "a.csv", CHINESE.encode("gb18030"))
    assert table == expected
    remedy = "if that makes no sense, save it as UTF-8"
    assert told == [f"{tmp_path / 'a.csv'}: read as GB18030, as it is not UTF-8; {remedy}"]


def test_texts_and_pairs_are_read_in_gb18030_too(tmp_path):
    told, pairs = [], "".join(f"第{i}个\t答案{i}\n" for i in range(20))
    (tmp_path / "a.txt").write_bytes(CHINESE.encode("gb18030"))
    (tmp_path / "a.tsv").write_bytes(pairs.encode("gb18030"))
    assert text.load([str(tmp_path / "a.txt")], tmp_path, told.append) == CHINESE
    task = tasks.load(str(tmp_path / "a.tsv"), 0, told.append)
    assert sum(map(len, task)) == 20 and len(told) == 2


# The columns of many tables, whose bytes in GB18030 can look like UTF-8: \xdb\xb8 in 价格. Those
# that are UTF-8 altogether, such as 学校, cannot be known alone.
NAMES = """
价格 性别 时间 地址 电话 学历 产品 客户 公司 备注 姓名 年龄 城市 日期 编号 数量 金额 单价
工资 收入 国家 省份 地区 邮箱 手机 类别 类型 名称 说明 描述 等级 评分 分数 成绩 民族 籍贯
身高 体重 温度 品牌 型号 库存 销售额 利润 成本 订单号 会员 标签 结果 是否 目标 序号 代码
""".split()


def test_one_chinese_name_in_a_table_of_ascii_is_enough():
    for name in NAMES:
        table = f"id,{name}\na,1\n"
        assert decoded("x", table.encode("gb18030"), lambda note: None) == table


def test_two_chinese_names_are_enough_even_if_one_is_utf_8_as_well():
    for one in NAMES:
        for two in (*NAMES, "学校", "职位"):
            table = f"{one},{two}\na,1\n"
            assert decoded("x", table.encode("gb18030"), lambda note: None) == table


@pytest.mark.parametrize(
    "words, encoding",
    [
        ("안녕하세요. 오늘은 날씨가 좋습니다.", "euc_kr"),
        ("今日はとても良い天気ですね。", "euc_jp"),
        ("привет, как дела сегодня", "koi8_r"),
        ("café", "latin-1"),
        ("“Yes” – it’s naïve", "cp1252"),
        ("¿Él vendrá?", "latin-1"),
        ("Müller,Käse,Größe,schön,für", "cp1252"),
        ("El niño comió mañana,señor", "latin-1"),
        ("très,élève,garçon,où", "latin-1"),
        ("Привет, как дела, я иду домой", "cp1251"),
        ("今日はとても良い天気ですね。", "shift_jis"),
        ("今天天氣很好，我們去市場買了很多東西", "big5"),
        ("ordinary words", "utf-16"),
    ],
)
def test_other_encodings_are_not_taken_for_chinese(words, encoding):
    with pytest.raises(ValueError, match="x: expected UTF-8 text, got byte 0x.. in line 1; conver"):
        decoded("x", words.encode(encoding), pytest.fail)


def test_one_byte_flipped_or_cut_in_a_short_utf_8_text_is_not_taken_for_chinese():
    for words in ("name,café", "Müller,Käse", "id,价格", "价格,性别", "Привет, мир", "“yes”"):
        whole = words.encode()
        for i in range(len(whole)):
            others = [bytes([b]) for b in (*range(128, 256), whole[i] ^ 1, whole[i] ^ 64)]
            for byte in (b"", *others):
                with suppress(ValueError):
                    decoded("x", whole[:i] + byte + whole[i + 1 :], pytest.fail)


@pytest.mark.parametrize("words", [CHINESE, "café, élève, où, très, déjà, été " * 5])
def test_utf_8_with_a_damaged_byte_is_not_taken_for_chinese(words):
    whole, rng = words.encode(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(data))] = rng.randrange(128, 256)
        told = []
        try:
            decoded("x", bytes(data), told.append)
        except ValueError:
            pass
        assert not told


# what a folder holds


def test_hidden_names_are_no_data(tmp_path):
    class_folders(tmp_path, (4, 3))
    plain = load(str(tmp_path), None, 0, DATA)
    for name in (".ipynb_checkpoints/0.npy", "cat/._0.npy", "cat/.DS_Store", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no array")
    (tmp_path / "dog" / ".ipynb_checkpoints").mkdir()
    told = []
    assert load(str(tmp_path), None, 0, DATA, told.append).crc() == plain.crc() and told == []


@pytest.fixture
def locked(monkeypatch):
    """A function that makes a folder unreadable, for the superuser, too"""
    listdir = os.listdir

    def lock(folder):
        def refuse(path="."):
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return listdir(path)

        monkeypatch.setattr(os, "listdir", refuse)
        return f"{folder}: expected a folder that can be read, got Permission denied; change its"

    return lock


@pytest.mark.parametrize("place", [".", "c", "c/deep"])
def test_a_folder_of_text_that_cannot_be_read_is_named(tmp_path, locked, place):
    (tmp_path / "c" / "deep").mkdir(parents=True)
    for name in ("a.txt", "c/b.txt", "c/deep/d.txt"):
        (tmp_path / name).write_text("words")
    error = locked(tmp_path / place)
    for read in (lambda: text.load([str(tmp_path)], tmp_path), lambda: text.listed([tmp_path])):
        with pytest.raises(ValueError, match=error):
            read()


def test_a_hidden_folder_need_not_be_read(tmp_path, locked):
    (tmp_path / ".git").mkdir()
    (tmp_path / "a.txt").write_text("words")
    locked(tmp_path / ".git")
    assert text.load([str(tmp_path)], tmp_path) == "words"


@pytest.mark.parametrize("place", [".", "cat"])
def test_a_folder_of_a_class_that_cannot_be_read_is_named(tmp_path, locked, place):
    class_folders(tmp_path, (4, 3), ("cat", "dog", "cow"))
    error = locked(tmp_path / place)
    for find in (lambda: load(str(tmp_path), None, 0, DATA), lambda: catalogue.kind([tmp_path], 0)):
        with pytest.raises(ValueError, match=error):
            find()


def test_what_is_left_aside_in_a_folder_is_told(tmp_path):
    class_folders(tmp_path, (4, 3))
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("1.gif", "2.webp", "3.bmp"):
        (tmp_path / "cat" / name).write_text("")
    told = []
    load(str(tmp_path), None, 0, DATA, told.append)
    names = ", ".join(["notes.txt", str(Path("cat/1.gif")), str(Path("cat/2.webp"))])
    assert told == [f"{tmp_path}: left aside {names} and 1 more; it may hold {signals.FOLDER}"]


def test_a_folder_of_something_else_is_told_what_it_may_hold(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.npy").write_text("too deep")
    words = "MNIST's four files, or a subfolder for each class.*got train, train.cat; bring it"
    with pytest.raises(ValueError, match=words):
        catalogue.kind([str(tmp_path)], None)


@pytest.mark.parametrize("packed", [False, True])
def test_mnists_files_may_have_a_dot_in_their_names(tmp_path, packed):
    write_mnist(tmp_path)
    plain = load(str(tmp_path), None, 0, DATA)
    for name in signals.MNIST:
        file = tmp_path / name
        content = gzip.compress(file.read_bytes()) if packed else file.read_bytes()
        (tmp_path / (name.replace("-idx", ".idx") + ".gz" * packed)).write_bytes(content)
        file.unlink()
    assert catalogue.kind([str(tmp_path)], None) == "image"
    assert load(str(tmp_path), None, 0, DATA).crc() == plain.crc()


# images


@pytest.fixture
def Image():
    return pytest.importorskip("PIL.Image")


def image_folder(folder, Image, size=(6, 8), mode="RGB", n=5):
    """Subfolders dark and light of n images each; size: Y, X"""
    rng = np.random.default_rng(0)
    shape = size if mode == "L" else (*size, 3)
    for k, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for i in range(n):
            pixels = rng.integers(100 * k, 100 * k + 100, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.{('png', 'JPG', 'jpeg')[i % 3]}")
    return folder


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3)])
def test_png_and_jpg_by_class_folder_are_images(tmp_path, Image, mode, channels):
    image_folder(tmp_path, Image, mode=mode)
    assert catalogue.kind([str(tmp_path)], None) == "image"
    examples = load(str(tmp_path), None, 0, DATA)
    assert examples.classes == ["dark", "light"]
    for x, y in parts_of(examples):
        assert x.shape[1:] == (6, 8, channels) and x.dtype == np.float32
        assert ((x.mean((1, 2, 3)) > 0) == y).all()


def test_a_new_image_is_scaled_as_those_of_training(tmp_path, Image):
    examples = load(str(image_folder(tmp_path, Image)), None, 0, DATA)
    path = tmp_path / "light" / "0.png"
    x = examples.encoder.encode(path)
    raw = np.asarray(Image.open(path)).astype(float)
    expected = (raw - examples.encoder.mean) / examples.encoder.scale
    np.testing.assert_allclose(x, [expected], rtol=1e-5, atol=1e-5)  # x is float32
    Image.new("RGB", (6, 8)).save(tmp_path / "turned.png")  # 6 wide, 8 high
    with pytest.raises(ValueError, match="turned.png: expected images of 6 x 8 x 3, got 8 x 6 x 3"):
        examples.encoder.encode(tmp_path / "turned.png")


def test_an_image_is_no_batch_of_sounds_or_of_smaller_images(tmp_path, Image):
    Image.new("L", (9, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 4)).save(tmp_path / "b.png")
    sounds = signals.ArrayEncoder("sound", (9,), 0.0, 1.0, None)
    images = signals.ArrayEncoder("image", (9, 3, 1), 0.0, 1.0, None)
    for encoder, name in ((sounds, "a.png"), (images, "b.png")):
        with pytest.raises(ValueError, match=f"{name}: expected {encoder.kind}s of 9"):
            encoder.encode(tmp_path / name)


def saved(Image, pixels, mode=None, **options):
    """A .png of these pixels, read"""
    path = Path("a.png")
    image = Image.fromarray(np.array(pixels))
    (image.convert(mode) if mode else image).save(path, **options)
    return formats.read_array(path)[0].tolist()


def test_every_form_of_png_becomes_grey_or_colours(tmp_path, Image, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    assert saved(Image, grey) == saved(Image, grey, "1") == grey.tolist()
    red = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    assert saved(Image, red) == saved(Image, red, "P") == red.tolist()
    deep = np.array([[0, 257, 65535]], np.uint16)  # 16 bits
    assert saved(Image, deep) == [[0, 1, 255]]
    half = np.array([[[255, 0, 0, 255], [0, 0, 9, 0]]], np.uint8)  # the second pixel is not seen
    assert saved(Image, half) == [[[255, 0, 0], [255, 255, 255]]]
    assert saved(Image, np.array([[3, 5]], np.uint8), transparency=5) == [[3, 255]]


def test_a_photo_is_turned_as_its_camera_says(tmp_path, Image):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.new("RGB", (9, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert formats.read_array(tmp_path / "a.jpg")[0].shape == (9, 4, 3)


@pytest.mark.parametrize("size, mode", [((6, 9), "RGB"), ((8, 6), "RGB"), ((6, 8), "L")])
def test_an_image_of_another_size_is_refused_by_name(tmp_path, Image, size, mode):
    image_folder(tmp_path, Image)
    Image.new(mode, size[::-1]).save(tmp_path / "light" / "odd.png")
    got = (*size, 3) if mode == "RGB" else size
    with pytest.raises(ValueError) as raised:
        load(str(tmp_path), None, 0, DATA)
    first = tmp_path / "dark" / "0.png"
    need = f"odd.png: expected shape (6, 8, 3) as in {first}, got {got}; make them equal"
    assert need in str(raised.value)


def test_a_folder_of_images_and_sounds_is_refused(tmp_path, Image):
    image_folder(tmp_path, Image)
    write_wav(tmp_path / "dark" / "0.wav", [1, 2, 3])
    with pytest.raises(ValueError, match="shape .* as in .*; make them equal"):
        load(str(tmp_path), None, 0, DATA)


def test_without_pillow_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            (tmp_path / name / f"{i}.png").write_bytes(b"any")
    error = mistake(train.main, ["--data", str(tmp_path)], capsys, tmp_path)
    need = 'expected Pillow, which reads images, none installed; pip install -e ".[images]"'
    assert need.replace(", none installed", ", got none installed") in error


def png(height, width, rows=b""):
    """A .png of one bit a pixel that claims this size"""

    def chunk(name, data):
        code = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", code)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "side, words",
    [
        (4097, "16,777,216 pixels at most, got 4,097 x 4,097; make it smaller"),
        (13_000, "16,777,216 pixels at most"),
        (15_000, "numbers in .png, got DecompressionBombError"),  # so many Pillow refuses itself
        (2**31 - 1, "numbers in .png, got "),
    ],
)
def test_an_image_that_claims_too_many_pixels_takes_no_memory(tmp_path, Image, side, words):
    path = tmp_path / "bomb.png"
    rows = side * (1 + -(-side // 8)) if side == 4097 else 0  # this one is whole
    path.write_bytes(png(side, side, bytes(rows)))
    with pytest.raises(ValueError, match=f"bomb.png: expected {words}") as raised:
        formats.read_array(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
@pytest.mark.parametrize("content, got", [(b"", "an empty file"), (b"<!DOCTYPE html>", "b'<!DOCT")])
def test_what_is_no_image_is_told_by_its_beginning(tmp_path, Image, name, content, got):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as raised:
        formats.read_array(tmp_path / name)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / name}: expected an image, numbers in .png or .jpg, got")
    assert f"got {got}" in message and message.endswith("; save the image itself")


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x"])
def test_a_folder_is_no_array(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="x.*: expected a file, got a folder; name a file in it"):
        formats.read_array(tmp_path / name)


def test_many_images_are_refused_before_they_fill_the_memory(tmp_path, Image, monkeypatch):
    image_folder(tmp_path, Image, n=5)
    monkeypatch.setattr(signals, "LARGEST", 10 * 6 * 8 * 3 - 1)
    count = []
    monkeypatch.setattr(
        signals, "read_array", lambda path: (count.append(path), formats.read_array(path))[1]
    )
    with pytest.raises(ValueError, match="1,439 numbers in all images, got 1440; make them smalle"):
        load(str(tmp_path), None, 0, DATA)
    assert len(count) == 1


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_an_image_with_other_bytes_is_read_or_refused_in_one_line(tmp_path, Image, name):
    rng, file = random.Random(name), io.BytesIO()
    pixels = np.random.default_rng(0).integers(256, size=(9, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, {"x.png": "PNG", "x.jpg": "JPEG"}[name])
    refused = 0
    for _ in range(300):
        data = bytearray(file.getvalue())
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.choice([len(data), rng.randrange(len(data))])]
        (tmp_path / name).write_bytes(data)
        try:
            fit(*formats.read_array(tmp_path / name))
        except (ValueError, OSError) as error:
            refused += 1
            message = str(error)
            assert len(message.splitlines()) == 1
            assert message.startswith((str(tmp_path), "image"))
    assert refused > 30


def test_a_file_that_cannot_be_opened_keeps_its_reason(tmp_path, Image):
    for name in ("absent.png", "absent.wav", "absent.npy"):
        with pytest.raises(FileNotFoundError):
            formats.read_array(tmp_path / name)


# sounds


def wav(samples, form, bits, extensible=False, rate=8000, channels=1, more=b""):
    """The bytes of a .wav; samples: already as bytes"""
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * frame, frame, bits)
    if extensible:
        head = struct.pack("<H", 0xFFFE) + head[2:] + struct.pack("<HHIH", 22, bits, 0, form)
        head += b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    chunks = b"fmt " + struct.pack("<I", len(head)) + head + more
    chunks += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def streamed(size):
    """A .wav of four bytes of sound whose header claims another size"""
    return wav(b"abcd", 1, 16)[:-8] + struct.pack("<I", size) + b"abcd"


WAVE = np.array([0, 0.5, -0.5, 0.25, -1])


def spelled(bits, form):
    """WAVE as the samples of a .wav"""
    if form == 3:
        return WAVE.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return (WAVE * 128 + 128).astype(np.uint8).tobytes()
    whole = [int(x * 2 ** (bits - 1)) for x in WAVE]
    return b"".join(x.to_bytes(bits // 8, "little", signed=True) for x in whole)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits, form", [(8, 1), (16, 1), (24, 1), (32, 1), (32, 3), (64, 3)])
def test_a_wav_of_any_bits_gives_the_same_samples(tmp_path, bits, form, extensible):
    (tmp_path / "a.wav").write_bytes(wav(spelled(bits, form), form, bits, extensible))
    x, rate = formats.read_array(tmp_path / "a.wav")
    assert x.tolist() == WAVE.tolist() and x.dtype == np.float32 and rate == 8000


def test_titles_in_a_wav_are_passed_over_and_channels_averaged(tmp_path):
    title = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # of an odd length: a byte is added
    stereo = np.array([[2**23 - 1, -(2**23)], [2**22, 0]]).reshape(-1)
    samples = b"".join(int(x).to_bytes(3, "little", signed=True) for x in stereo)
    (tmp_path / "a.wav").write_bytes(wav(samples, 1, 24, channels=2, more=title))
    x, _ = formats.read_array(tmp_path / "a.wav")
    np.testing.assert_allclose(x, [-0.5 / 2**23, 0.25], atol=1e-7)  # float32


def test_a_wav_is_read_as_scipy_reads_it(tmp_path):
    wavfile = pytest.importorskip("scipy.io.wavfile")
    noise = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    for dtype, loudest in (("i2", 2**15), ("i4", 2**31), ("f4", 1), ("f8", 1)):
        samples = (noise * (loudest - 1 if loudest > 1 else 1)).astype(dtype)
        wavfile.write(tmp_path / "a.wav", 11_025, samples)
        x, rate = formats.read_array(tmp_path / "a.wav")
        assert rate == 11_025
        np.testing.assert_allclose(x, samples.mean(1) / loudest, atol=1e-6)  # float32


@pytest.mark.parametrize(
    "content, words",
    [
        (wav(b"abcd", 2, 4), "8, 16, 24 or 32 bits, or floats .* got format 2 of 4 bits; convert"),
        (wav(b"abcd", 1, 12), "got format 1 of 12 bits"),
        (wav(b"abcd", 1, 16, channels=0), "got format 1 of 16 bits"),
        (wav(b"", 1, 16), "the length of the sound, got a header that claims 0 bytes"),
        (streamed(0), "got a header that claims 0 bytes, as pipes .*; save it anew .* ffmpeg"),
        (streamed(2**32 - 1), "got a header that claims 4,294,967,295 bytes, as pipes"),
        (streamed(2**31 - 4096), "got a header that claims 2,147,479,552 bytes, as pipes"),
        (streamed(9), "9 bytes of sound, got 4; copy it again"),
        (wav(struct.pack("<f", np.nan), 3, 32), "an array of finite numbers"),
        (wav(struct.pack("<d", 1e300), 3, 64), "an array of finite numbers"),
        (wav(b"abcd", 1, 16)[:-2], "4 bytes of sound, got 2; copy it again"),
        (wav(b"abcd", 1, 16)[:36], "a .wav file with fmt and data, got b'fmt '"),
        (b"RIFX" + wav(b"abcd", 1, 16)[4:], "a .wav file .RIFF, WAVE."),
        (wav(b"abcd", 0xFFFE, 16), "numbers in .wav"),
    ],
)  # fmt: skip
def test_another_wav_is_refused_in_one_line(tmp_path, content, words):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.wav: expected .*{words}") as raised:
        formats.read_array(tmp_path / "a.wav")
    assert "\n" not in str(raised.value)


# models and shapes


@pytest.mark.parametrize(
    "name, shape, words",
    [
        ("conv", (1, 40, 1), "images of 2 x 2 or more, got 1 x 40; choose lstm"),
        ("conv", (40, 1, 1), "images of 2 x 2 or more, got 40 x 1"),
        ("gpt", (1, 40, 1), "images of 2 x 2 or more, got 1 x 40; choose lstm"),
        ("gpt", (28, 3, 1), "images of 4 x 4 or more, got 28 x 3"),
    ],
)
def test_images_too_small_for_a_model_are_refused_where_it_is_chosen(name, shape, words):
    config = GPTConfig(2, block_size=1, n_layer=1, n_head=2, n_embd=16)
    with pytest.raises(ValueError, match=f"--model: expected {words}"):
        classifier("image", model_class(name), shape, config, np.random.default_rng(0))


SMALLEST = {"image": (1, 1, 1), "sound": (1,), "table": (1,)}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", SMALLEST)
def test_the_smallest_examples_are_classified_or_refused(kind, name):
    config = GPTConfig(2, block_size=1, n_layer=1, n_head=2, n_embd=16)
    make = partial(classifier, kind, model_class(name), config=config, rng=np.random.default_rng(0))
    if kind == "image" and name in ("conv", "gpt"):
        with pytest.raises(ValueError, match="--model: expected images of 2 x 2"):
            make(SMALLEST[kind])
        make((2, 2, 1))(np.ones((3, 2, 2, 1), np.float32))
    else:
        z = make(SMALLEST[kind])(np.ones((3, *SMALLEST[kind]), np.float32))
        assert z.shape == (3, 2) and np.isfinite(z.data).all()


def test_images_of_one_row_are_refused_by_train_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    class_folders(Path("rows"), (1, 40))
    words = ["--data", "rows", "--model", "conv", "--workers", "1"]
    error = mistake(train.main, words, capsys, tmp_path)
    assert error.startswith("train.py: --model: expected images of 2 x 2 or more, got 1 x 40")


# a report from elsewhere


@pytest.fixture
def trained(tmp_path, monkeypatch, capsys):
    """A run in home/out/table-gpt on home/table.csv -> its report; the working folder is there"""
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    csv_of(home / "table.csv", 40)
    monkeypatch.chdir(home)
    train.main(["--data", "table.csv", "--target", "class", *TINY])
    capsys.readouterr()
    sample.main(["out/table-gpt"])
    return capsys.readouterr().out


@pytest.mark.parametrize("place", ["deep", "..", "out/table-gpt"])
def test_a_report_finds_its_data_from_another_folder(trained, monkeypatch, capsys, place):
    run = Path("out/table-gpt").resolve()
    monkeypatch.chdir(place)
    sample.main([str(run)])
    assert capsys.readouterr().out == trained


def test_data_says_where_the_data_of_a_report_lies_now(trained, monkeypatch, capsys, tmp_path):
    Path("table.csv").rename("deep/moved.csv")
    error = mistake(sample.main, ["out/table-gpt"], capsys, tmp_path)
    assert error.startswith("sample.py: table.csv: expected a file") and "with --data" in error
    sample.main(["out/table-gpt", "--data", "deep/moved.csv"])
    assert capsys.readouterr().out == trained
    sample.main(["out/table-gpt", "--data", "deep/moved.csv", "--look"])
    assert Path("out/table-gpt/look.html").exists()
    csv_of(Path("other.csv"), 44)
    error = mistake(sample.main, ["out/table-gpt", "--data", "other.csv"], capsys, tmp_path)
    assert error.startswith("sample.py: other.csv: not what this run has read")


def test_a_name_is_not_looked_for_among_folders(tmp_path):
    (tmp_path / "out" / "run").mkdir(parents=True)
    for name in ("digits", "manual", "qa"):
        (tmp_path / name).mkdir()
    run = tmp_path / "out" / "run"
    assert catalogue.found(["digits", "manual", "qa"], run) == [["digits", "manual", "qa"]]
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "a.csv").write_text("")
    (found,) = catalogue.found(["a.csv", "manual"], run)
    assert Path(found[0]).samefile(tmp_path / "a.csv") and found[1:] == ["manual"]
    for names in (["a.csv", "b.csv"], ["x" * 9999]):
        assert catalogue.found(names, run) == [names]


@pytest.fixture(params=["../runs/a", "/absolute"])
def away(request, tmp_path, monkeypatch, capsys):
    """A run on a.csv outside the folder of its training -> that folder, the run, its report"""
    home, run = tmp_path / "home", tmp_path / "runs" / "a"
    (home / "deep").mkdir(parents=True)
    csv_of(home / "a.csv", 40)
    monkeypatch.chdir(home)
    out = str(run) if request.param == "/absolute" else request.param
    train.main(["--data", "a.csv", "--target", "class", "--out", out, *TINY])
    capsys.readouterr()
    sample.main([out])
    return home, run, capsys.readouterr().out


@pytest.mark.parametrize("place", [".", "deep", "..", "../runs/a"])
def test_a_run_outside_the_folder_of_its_training_finds_its_data(away, monkeypatch, capsys, place):
    _, run, report = away
    monkeypatch.chdir(place)
    for path in (run, os.path.relpath(run), run / "last.safetensors"):
        sample.main([str(path)])
        assert capsys.readouterr().out == report


def test_a_run_that_is_moved_together_with_its_data_finds_it(away, monkeypatch, capsys, tmp_path):
    (tmp_path / "new").mkdir()
    for name in ("home", "runs"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    monkeypatch.chdir(tmp_path)
    sample.main(["new/runs/a"])
    assert capsys.readouterr().out == away[2]


OTHER = ["x,class\n1,a\n", "", "no table\n\n,,\n", None]


@pytest.mark.parametrize("other", OTHER)
def test_a_file_of_the_same_name_that_is_nearer_hides_no_data(away, monkeypatch, capsys, other):
    monkeypatch.chdir("deep")
    if other is None:
        csv_of(Path("a.csv"), 44)
    else:
        Path("a.csv").write_text(other)
    sample.main([str(away[1])])
    assert capsys.readouterr().out == away[2]


def test_the_search_for_moved_data_goes_on_past_a_file_that_is_not_it(away, capsys, tmp_path):
    home, run, report = away
    (home / "a.csv").rename(tmp_path / "runs" / "a.csv")
    for file in (home / "a.csv", run / "a.csv"):
        csv_of(file, 44)
    sample.main([str(run)])
    assert capsys.readouterr().out == report
    (tmp_path / "runs" / "a.csv").unlink()
    error = mistake(sample.main, [str(run)], capsys, tmp_path)
    assert error.startswith("sample.py: a.csv: not what this run has read; restore it, or name it")


def test_a_run_is_resumed_from_another_folder_as_if_from_its_own(away, monkeypatch, capsys):
    home, run, _ = away
    words = ["--resume", "--steps", "4", "--out"]
    shutil.copytree(run, run.parent / "b")
    train.main([*words, str(run.parent / "b")])
    monkeypatch.chdir("deep")
    csv_of(Path("a.csv"), 44)
    train.main([*words, str(run)])
    (a, about), (b, other) = (checkpoint.load(run.parent / f"{x}/last.safetensors") for x in "ab")
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    assert about["data"] == other["data"] and about["config"]["data"] == [str(Path("../a.csv"))]
    reports = []
    for name in "ab":
        capsys.readouterr()
        sample.main([str(run.parent / name)])
        reports.append(capsys.readouterr().out)
    assert reports[0] == reports[1]


def test_equal_runs_in_folders_of_equal_place_leave_equal_files(tmp_path, monkeypatch):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        csv_of(tmp_path / name / "a.csv", 40)
        monkeypatch.chdir(tmp_path / name)
        train.main(["--data", "a.csv", "--target", "class", *TINY])
        files.append(Path("out/a-gpt/last.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("words", [["--prompt", "x"], ["--input", "table.csv"], ["--explain", "x"]])
def test_data_beside_what_reads_none_is_refused(trained, capsys, tmp_path, words):
    error = mistake(sample.main, ["out/table-gpt", "--data", "x", *words], capsys, tmp_path)
    assert (
        error.startswith("sample.py: --data: expected the report or --look") and words[0] in error
    )


def test_a_run_that_writes_has_no_report_to_read_data_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "CACHE", tmp_path)
    Path("text.txt").write_text("the quick brown fox. " * 60)
    train.main(["--data", "text.txt", "--block-size", "16", *TINY])
    capsys.readouterr()
    error = mistake(sample.main, ["out/text-gpt", "--data", "text.txt"], capsys, tmp_path)
    assert error.startswith("sample.py: --data: expected a run with a report, got out/text-gpt wri")


# what is said


def test_what_was_inferred_is_printed_in_training_and_not_in_the_report(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i};{i},5;{('是', '否')[i % 2]}" for i in range(40)]
    Path("a.csv").write_bytes("\n".join([";数;类", *rows]).encode("gb18030"))
    train.main(["--data", "a.csv", "--target", "类", *TINY])
    printed = capsys.readouterr().out
    for words in ("read as GB18030", "its first column only counts", "column 数: 0,5 is read as 0"):
        assert words in printed
    sample.main(["out/a-gpt"])
    report = capsys.readouterr()
    assert "a.csv" not in report.out + report.err
    sample.main(["out/a-gpt", "--input", "a.csv"])
    rows = capsys.readouterr()
    assert rows.out.count("\n") == 41 and rows.err.count("sample.py: a.csv: ") == 3


@pytest.mark.parametrize("every", [20, 4])  # 5 % odd cells are refused, of 25 % it is told
def test_a_strangers_table_sends_no_control_characters_to_the_terminal(
    tmp_path, monkeypatch, capsys, every
):
    monkeypatch.chdir(tmp_path)
    odd = "od\x1b[2J\x9b\nd"
    rows = [f'"{i if i % every else odd}",{"xy"[i % 2]}' for i in range(40)]
    Path("a.csv").write_text("\n".join(["a,class", *rows]), encoding="utf-8")
    words = ["--data", "a.csv", "--target", "class", *TINY]
    if every == 20:
        printed = mistake(train.main, words, capsys, tmp_path)
    else:
        train.main(words)
        printed = capsys.readouterr().out
    assert "od\ufffd[2J\ufffd d; " in printed and not {"\x1b", "\x9b"} & {*printed}


def test_a_device_is_no_table(capsys):
    with pytest.raises(ValueError, match="/dev/null: expected a .csv file, got a folder, a device"):
        tables.read_csv("/dev/null")


def test_tiny_numbers_have_a_scale():
    encoder = TableEncoder.fit({"a": ["1e-200", "2e-200", "0"]}, range(3))  # squares are 0
    assert np.isfinite(encoder.encode_columns({"a": ["1e-200", "5"]})).all()


@pytest.mark.parametrize("trained, asked", [("5%", "5"), ("5", "5%")])
def test_a_percentage_is_not_read_as_a_number_a_hundred_times_as_large(trained, asked):
    encoder = tables.TableEncoder.fit({"a": [trained, "1%" if "%" in trained else "1"]}, [0, 1])
    encoder.encode_columns({"a": [trained, "NA"]})
    with pytest.raises(ValueError, match="row 1, column a: expected a number with(out)? %"):
        encoder.encode_columns({"a": [asked]})


def test_a_point_is_refused_wherever_a_column_of_the_file_has_decimal_commas(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("p;n\n1,5;1.000\n2,5;2.500\n")
    with pytest.raises(ValueError, match="line 2, column n: expected a decimal comma or none"):
        tables.read_csv(file)


@pytest.mark.parametrize("encoding", ["gb18030", "latin-1"])
def test_what_is_no_utf8_is_looked_at_where_it_begins(encoding):
    """Far behind a head of plain letters, which say nothing about the rest."""
    head = "plain letters\n" * 100_000
    words = "价格和时间，产品与客户" if encoding == "gb18030" else "café, naïve"
    told, data = [], (head + words).encode(encoding)
    if encoding == "gb18030":
        assert decoded("x", data, told.append) == head + words and len(told) == 1
    else:
        with pytest.raises(ValueError, match="expected UTF-8 text, got byte 0xe9 in line 100001"):
            decoded("x", data, told.append)


def test_new_rows_are_read_as_the_table_was_whatever_else_stands_in_them(tmp_path):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    rows = "".join(f"{i % 7}.{i:03};{'ab'[i % 2]}\n" for i in range(60))
    old.write_text("x;y\n2.5;a\n" + rows)
    encoder = load(str(old), "y", 0, tmp_path).encoder
    new.write_text("x;z\n1.485;1.000\n2;7\n")
    assert encoder.encode(new).shape[0] == 2
