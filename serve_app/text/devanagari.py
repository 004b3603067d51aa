"""Devanagari in Latin letters, roughly as names of it are written in passports: आदित्य is aditya, दीपक is dipak. Pure.

Consonants carry an `a` unless a vowel sign or a virama follows. Hindi does not speak all of them: not the last one of a word,
unless two consonants are joined before it (mishra), nor one between a vowel with its consonant and a consonant with its vowel
(rajkumar). That is the rule of thumb known as schwa deletion; what it gets wrong, tolerance of typing errors covers.
"""

from __future__ import annotations

import unicodedata

FIRST, LAST = "\u0900", "\u097f"

_VOWELS = {
    "अ": "a", "आ": "a", "इ": "i", "ई": "i", "उ": "u", "ऊ": "u", "ऋ": "ri", "ए": "e", "ऐ": "ai", "ओ": "o", "औ": "au",
    "ऑ": "o", "ऍ": "e", "ॐ": "om",
}  # fmt: skip
_SIGNS = {
    "ा": "a", "ि": "i", "ी": "i", "ु": "u", "ू": "u", "ृ": "ri", "े": "e", "ै": "ai", "ो": "o", "ौ": "au", "ॉ": "o", "ॅ": "e",
}  # fmt: skip
_CONSONANTS = {
    "क": "k", "ख": "kh", "ग": "g", "घ": "gh", "ङ": "n", "च": "ch", "छ": "chh", "ज": "j", "झ": "jh", "ञ": "n",
    "ट": "t", "ठ": "th", "ड": "d", "ढ": "dh", "ण": "n", "त": "t", "थ": "th", "द": "d", "ध": "dh", "न": "n",
    "प": "p", "फ": "ph", "ब": "b", "भ": "bh", "म": "m", "य": "y", "र": "r", "ल": "l", "ळ": "l", "व": "v",
    "श": "sh", "ष": "sh", "स": "s", "ह": "h",
}  # fmt: skip
_WITH_NUKTA = {"क": "q", "ख": "kh", "ग": "g", "ज": "z", "ड": "r", "ढ": "rh", "फ": "f"}
_NUKTA, _VIRAMA = "\u093c", "\u094d"
_NASALS = "\u0901\u0902"
_LABIALS = "पफबभम"


def romanize(word: str) -> str:
    """Lower case ASCII letters and digits; what is no letter or digit of Devanagari is dropped."""
    text = unicodedata.normalize("NFD", word)
    consonants: list[str] = []
    vowels: list[str] = []
    """Of each consonant the vowel after it: `-` for the one it carries by itself. A vowel of its own has no consonant."""
    place = 0
    while place < len(text):
        letter, following = text[place], text[place + 1 : place + 2]
        place += 1
        if letter in _CONSONANTS:
            sound = _CONSONANTS[letter]
            if following == _NUKTA:
                sound = _WITH_NUKTA.get(letter, sound)
                place += 1
                following = text[place : place + 1]
            if following == _VIRAMA:
                consonants.append(sound)
                vowels.append("")
                place += 1
            elif following in _SIGNS and following:
                consonants.append(sound)
                vowels.append(_SIGNS[following])
                place += 1
            else:
                consonants.append(sound)
                vowels.append("-")
        elif letter in _VOWELS:
            consonants.append("")
            vowels.append(_VOWELS[letter])
        elif letter in _NASALS:
            # Heard after the vowel before it: its place is that of a consonant without one.
            consonants.append("m" if following and following in _LABIALS else "n")
            vowels.append("")
        elif letter.isdecimal():
            consonants.append(str(int(letter)))
            vowels.append("")
    return "".join(consonant + vowel for consonant, vowel in zip(consonants, _spoken(consonants, vowels), strict=True))


def _spoken(consonants: list[str], vowels: list[str]) -> list[str]:
    spoken = list(vowels)
    last = len(spoken) - 1
    for place in range(last, -1, -1):
        if spoken[place] != "-":
            continue
        joined = place > 0 and spoken[place - 1] == ""
        if place == last:
            silent = place > 0 and not joined
        else:
            # A vowel before its consonant, and a vowel after the next one.
            silent = place > 0 and not joined and spoken[place + 1] not in ("", "-") and consonants[place + 1] != ""
            silent = silent and vowels[place - 1] != ""
        spoken[place] = "" if silent else "a"
    return spoken
