"""Numbers from 0 to 999,999 in English words and in Chinese numerals, one spelling for each."""

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS = "零一二三四五六七八九"


def english(n):
    """3012 -> three thousand and twelve, as the British say it"""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    unit, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    many, rest = divmod(n, unit)
    words = f"{english(many)} {name}"
    if rest:
        words += (" and " if rest < 100 else " ") + english(rest)
    return words


def chinese(n):
    """3012 -> 三千零一十二

    Chinese counts in groups of four digits: before 万 stand the ten thousands. A gap, however long,
    is one 零, a first 一十 loses its 一, and 2 is always 二, never 两.
    """
    high, low = divmod(n, 10_000)
    text = f"{chinese_digits(high)}万" if high else ""
    if high and 0 < low < 1000:
        text += "零"
    text += chinese_digits(low)
    if text.startswith("一十"):
        text = text.removeprefix("一")
    return text or "零"


def chinese_digits(n):
    """0 to 9,999 -> digits, each with its unit; "" for 0"""
    text = ""
    for unit, name in (1000, "千"), (100, "百"), (10, "十"), (1, ""):
        digit, n = divmod(n, unit)
        if digit:
            text += DIGITS[digit] + name
        elif text and n and text[-1] != "零":  # a gap between digits
            text += "零"
    return text
