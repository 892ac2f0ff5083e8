"""The rules of the caption tokenizer: what can be a token, in the order in which ties between them are broken.

`scan` in ptb.py takes, at each position, the rule with the longest match, its look-ahead counted. Each was found
by asking the official tokenizer (see tests/metrics/ptb_cases.json); words without a class of letters match in any case.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from lavis_lite.metrics.ptb_characters import CAPITAL, DIGIT, MARK, SMALL, SYMBOL

Token = Callable[[str], str]

_D = f"0-9{DIGIT}"
_L = f"A-Za-z{SMALL}{CAPITAL}"
_ENTITY = "&[aeiouAEIOU](?i:acute|grave|uml);"
_LETTER = f"(?:[\u00ad{_L}{MARK}]|{_ENTITY})"
_LETTERS_OR_DIGITS = f"(?:[\u00ad{_L}{MARK}{_D}]|{_ENTITY})*"
_WORD = f"{_LETTER}{_LETTERS_OR_DIGITS}(?:[.!?]{_LETTER}{_LETTERS_OR_DIGITS})*"
_APOSTROPHE = "(?:['\u0092\u2019]|&(?i:apos);)"
_APOSTROPHE_LIKE = "(?:['\u0092\u2019`\u0091\u2018\u201b]|&(?i:apos);)"
_SPACE = "[ \t\u00a0\u2000-\u200a\u3000]"
_WHITE = "[ \t\u00a0\u2000-\u200a\u3000\n]"
_CLITIC = f"{_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
_NOT = f"(?i:n){_APOSTROPHE_LIKE}(?i:t)"
_TAG_NAME = r"[A-Za-z][A-Za-z0-9:._-]*"
_TAG = (rf"<(?:[!?][A-Za-z-][^>\r\n]*|/?{_TAG_NAME}(?: +{_TAG_NAME}(?: *= *(?:'[^'\r\n]*'|\"[^\"\r\n]*\"))?)*"
        r"(?: */)?) *>")
_NUMBER = f"(?:[{_D}]+(?:[.:,\u00ad\u066b\u066c][{_D}]+)*|(?:[.:,\u00ad\u066b\u066c][{_D}]+)+)"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_COUNTRY = r"(?i:canada|sino|korean|eu|japan|non)-[Uu]\.[Ss]|(?i:u\.s)\.-(?i:u\.k|u\.s\.s\.r)"
_PART = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_SEGMENT = f"(?:[dDoOlL]{_APOSTROPHE_LIKE}[{_L}{_D}])?[{_L}{_D}]+"
_THING = f"{_SEGMENT}(?:[-_\u058a\u2010\u2011]{_SEGMENT})*"
_HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\u00ad]+))+"
_AND = "[A-Z]+(?:(?:[+&]|&(?i:amp);)[A-Z]+)+"
_CLASS = re.compile(r"\[\w+\]")


def _abbreviations(words: str) -> list[str]:
    """Patterns of abbreviations in any case, except text in brackets."""
    return [_CLASS.sub(r"(?-i:\g<0>)", word) for word in words.split()]


_ENDING = _abbreviations(r"""
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
ala ariz [A]z [A]rk calif colo conn dak [D]el fla ga [I]ll ind kans? ky [L]a [M]ass md mich minn [M]iss mo mont neb nev
okla [O]re [P]a penn tenn [T]ex va vt [W]ash wisc? wyo
inc cos? corp p?pt[ye]s? ltd plc rt bancorp bhd assn univ intl sys bldg tel est ext sq ct jr sr bros (?:ed|ph)\.d blvd
rd esq etc al seq""")
"""abbreviations that a sentence can end with: before a capital they are followed by a separate full stop"""
_TITLES = _abbreviations("""
mr mrs ms [M]iss drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste? ave pres lieut
hon brig co?mdr pfc spc supts? det mt ft adj adv asst assoc ens insp mlle mme msgr sfc dept invt elec natl m[tf]g
vs alex wm jos cie cf treas ph""")
"""abbreviations that something follows"""
_COUNTED = _abbreviations("ca figs? prop nos? art bldg pp op")
"""abbreviations only before a number"""
COUNTED = re.compile("(?i:.*(?<![a-z])(?:[a-z]|p?t[ye]|" + "|".join(_COUNTED) + r")\.)")
"""chunks that end in an abbreviation or not, depending on what follows"""
ABBREVIATED = re.compile("(?i:[a-z]|" + "|".join(_ENDING + _TITLES + _COUNTED).replace("(?-i:", "(?i:") + r")\.")
"""words with a full stop that may not be the end of a sentence"""
SPLIT = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))
"""words that are two tokens"""
_STARTERS = r"""
A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr\.
Ms\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet
You""".split()
"""words that begin a sentence, and so end the one before even where it closes with an acronym"""

QUOTES = {"\u0091": "`", "\u2018": "`", "\u201b": "`", "\u2039": "`", "\u0092": "'", "\u2019": "'", "\u203a": "'",
          "\u0093": "``", "\u00ab": "``", "\u201c": "``", "\u0094": "''", "\u00bb": "''", "\u201d": "''"}
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_MONEY = {"\u0080": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$", "\u00a3": "#", "\u00a2": "cents"}
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&nbsp;": ""}
_QUOTES = "`\u201a\u201e\u201f" + "".join(QUOTES)
_NAMED_SYMBOLS = "\u00a5\u00b2\u00b3\u00b9\u2070\u2074-\u207e\u2080-\u208b\u2155-\u215e\u201a\u201e\u201f\u3001"
_FIRST_APOSTROPHE = "'&\u0092\u2019"
_FIRST_QUOTE = _FIRST_APOSTROPHE + _QUOTES


@dataclass(frozen=True)
class Rule:
    """One kind of token.

    Attributes:
        first: characters it can begin with; `a` means any letter, `0` any digit.
        pattern: of the text's shadow; group 1, if there is one, is the token and the rest is looked ahead at.
        token: the token's text -> how it is printed, before it is brought to lower case.
        again: how many of the token's last characters the scanner reads once more.
    """

    first: str
    pattern: re.Pattern[str]
    token: Token
    again: int = 0


def no_break_spaces(text: str) -> str:
    """The text; blanks inside of one token become no-break spaces, as the official tokenizer prints them."""
    return text.replace(" ", "\u00a0")


def _brackets(text: str) -> str:
    return no_break_spaces(text).replace("(", "-LRB-").replace(")", "-RRB-")


def _apostrophe(text: str) -> str:
    return re.sub(_APOSTROPHE, "'", text)


def _ampersand(text: str) -> str:
    return re.sub("&(?i:amp);", "&", text)


def _closing(text: str) -> str:
    return "".join(QUOTES.get(one, one) for one in _apostrophe(text))


def _without_soft_hyphens(text: str) -> str:
    return text.replace("\u00ad", "") or "-"




def _hyphens(text: str) -> str:
    return "--" if len(text) in (3, 4) else text


def _always(token: str) -> Token:
    return lambda text: token


def _table(table: dict[str, str]) -> Token:
    return lambda text: table.get(text.lower(), text)


def _any(words: list[str]) -> str:
    return f"(?i:{'|'.join(words)})"


def _capitalised(word: str) -> str:
    return f"{word[0]}(?i:{word[1:]})"


def _rule(first: str, pattern: str, token: Token = no_break_spaces, again: int = 0) -> Rule:
    return Rule(first, re.compile(pattern), token, again)


@cache
def rules() -> tuple[Rule, ...]:
    """All rules, first ones first."""
    return (*_word_rules(), *_web_rules(), *_number_rules(), *_abbreviation_rules(), *_mark_rules())


def _word_rules() -> list[Rule]:
    return [
        _rule("a", "((?i:can))(?i:not)"),
        _rule("a", "((?i:gon|wan))(?i:na)"),
        _rule("a", "((?i:lem|gim))(?i:me)"),
        _rule("a", "((?i:got))(?i:ta)"),
        _rule("'", "('(?i:t))(?i:is|was)"),
        _rule("<", _TAG),
        _rule("&\x96\x97\u2013\u2014\u2015", "&(?i:md|mdash|ndash);|[\x96\x97\u2013-\u2015]", _always("--")),
        _rule("&", "&(?i:amp);", _ampersand),
        _rule("&", "&(?i:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);"),
        _rule("&", "&(?i:lt|gt|nbsp);", _table(_ENTITIES)),
        _rule("a&\u00ad", f"({_WORD}){_CLITIC}", _without_soft_hyphens),
        _rule("a\u00ad", f"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*){_NOT}", _without_soft_hyphens),
        _rule("a&\u00ad", _WORD, _without_soft_hyphens),
        _rule("a" + _FIRST_APOSTROPHE, _with_apostrophes()),
        _rule("a", f"((?i:y){_APOSTROPHE})[{_L}]", _apostrophe),
    ]


def _with_apostrophes() -> str:
    """Words that keep an apostrophe."""
    return "|".join((
        f"[{_L}]+[aeiouyAEIOUY]{_APOSTROPHE_LIKE}[aeiouA-Z][{_L}]*",
        f"[A-HJ-XZn]{_APOSTROPHE_LIKE}[{_L}]{{2}}[{_L}]*",
        f"{_APOSTROPHE}(?i:n){_APOSTROPHE}?",
        f"[lLdDjJ]{_APOSTROPHE}",
        f"(?i:dunkin|somethin|ol){_APOSTROPHE}",
        f"{_APOSTROPHE}(?i:em|cause|till?)",
        f"(?i:c{_APOSTROPHE}mon|o{_APOSTROPHE}o|o{_APOSTROPHE}clock|ma{_APOSTROPHE}am|s{_APOSTROPHE}mores)",
        f"(?i:li{_APOSTROPHE}l)",
        f"(?i:nor{_APOSTROPHE}easter|e{_APOSTROPHE}er|ev{_APOSTROPHE}ry|cont{_APOSTROPHE}d\\.|cap{_APOSTROPHE}n|c{_APOSTROPHE}est)",
        f"{_APOSTROPHE}[2-9]0(?i:s)",
    ))


def _web_rules() -> list[Rule]:
    host = r"[^ \t\n\f\r\"<>|(){}.\u00a0]+"
    path = r"(?:/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},-])?"
    return [
        _rule("a", r"(?i:https?)://[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"<>|.!?(){},-]"),
        _rule("a", r"(?i:www)\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}" + path),
        _rule("*", r"(?:[^ \t\n\f\r\"`'<>|.!?(){}$,-_]+\.)+(?i:com|net|org|edu)" + path),
        _rule("a0<", rf"<?[a-zA-Z0-9][^ \t\n\f\r\"<>|(){{}}\u00a0]*@(?:{host}\.)*{host}>?"),
        _rule("@", "@[a-zA-Z_][a-zA-Z_0-9]*"),
        _rule("#", f"#{_LETTER}+"),
    ]


def _number_rules() -> list[Rule]:
    return [
        _rule(_FIRST_APOSTROPHE, f"({_CLITIC})[^A-Za-z]", _apostrophe),
        _rule("a", _NOT, _closing),
        _rule("0", f"[{_D}]{{1,2}}[-/][{_D}]{{1,2}}[-/][{_D}]{{2,4}}"),
        _rule("0+-.:,\u00ad\u066b\u066c", f"[-+]?{_NUMBER}", _without_soft_hyphens),
        _rule("*", "[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),
        _rule("0", f"(?:[{_D}]{{1,4}}[- \u00a0])?[{_D}]{{1,4}}(?:\\\\?/|\u2044)[{_D}]{{1,4}}"),
        _rule("*", "[\xbc-\xbe\u2153-\u215e]", _table(_FRACTIONS)),
        _rule("-acsCS", "-(?i:rrb|lrb|rcb|lcb|rsb|lsb)-|(?i:c\\.d\\.s|pro-|anti-|s&p-500|s&ls)"),
        _rule("a0", rf"{_PART}(?:\\?/{_PART}){{1,2}}"),
        _rule("a$#", r"[A-Z]*\$|#"),
        _rule("*", "[\xa2\xa3\xa4\xa5\x80\u20a0\u20ac]", _table(_MONEY)),
        _rule("0(+.", r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
              r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
              _brackets),
        _rule(_FIRST_APOSTROPHE, f"({_APOSTROPHE}[{_D}]{{2}}){_WHITE}"),
    ]


def _abbreviation_rules() -> list[Rule]:
    ending, acronym = rf"{_any(_ENDING)}\.", rf"(?:[A-Za-z](?:\.[A-Za-z])*|{_COUNTRY})\."
    starter = f"{_WHITE}+(?:{'|'.join(map(_capitalised, _STARTERS))}|{_TAG}){_WHITE}"
    end = f"{_WHITE}(?:{_WHITE}|[A-Z{CAPITAL}]|{_TAG})"
    return [
        _rule("a", rf"({_any(_COUNTED)}\.){_WHITE}?[{_D}]"),
        _rule("a", rf"((?i:p?t[ye]|co)\.){_SPACE}(?i:ltd|lim)"),
        _rule("a", f"({ending}){end}", again=1),
        _rule("a", rf"({ending})[\s\S]{{2}}"),
        _rule("a", rf"({ending})[\s\S]?\Z", again=1),
        _rule("a", rf"{acronym}|{_any(_TITLES)}\."),
        _rule("a", rf"([A-Za-z])\.{starter}"),
        _rule("a", f"({acronym}){starter}", again=1),
        _rule("a", f"({_COUNTRY}){_WHITE}"),
        _rule("a&0\u00ad", f"((?:{_WORD}|{_THING}|{_HYPHENATED}|{_AND})\\.)[,;:\u3001]", _without_soft_hyphens),
        _rule("a0\u00ad", f"([\u00ad{_L}{_D}]+(?:\\.[\u00ad{_L}{_D}]+)*\\.(?i:{_EXTENSIONS}))(?:{_WHITE}|[.?!,])"),
    ]


_EXTENSIONS = ("3gp|avi|bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpe?g|mov|mp3|pdf|php|pl"
               "|png|pptx?|ps|py|sql|tar|txt|wav|wm[av]|x|xml|zip")


def _mark_rules() -> list[Rule]:
    eyes = r"[-^x=~<>']"
    return [
        _rule("a0", _THING),
        _rule("a0", _HYPHENATED, _without_soft_hyphens),
        _rule("a", _AND, _ampersand),
        _rule("a", r"[cC](?:\+\+|#)|[fF]#"),
        _rule(".", r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.", _always("...")),
        _rule("\u2026", "\u2026", _always("...")),
        _rule("\"&", "(\"|&(?i:quot);)[A-Za-z0-9$]", _always("``")),
        _rule("\"&", "\"|&(?i:quot);", _always("''")),
        _rule("'", r"(')[A-Za-z][^ \t\n\r\u00a0]", _always("`")),
        _rule(_FIRST_QUOTE, rf"''|[{_QUOTES}]{{1,2}}|{_APOSTROPHE}", _closing),
        _rule(_FIRST_APOSTROPHE, _CLITIC, _apostrophe),
        _rule("<>:;=", r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _brackets),
        _rule("*", rf"{eyes}_{eyes}|\({eyes}[_.]?{eyes}\)|\([\^x=~<>']-[\^x=~<>'`]\)", _brackets),
        _rule("-", "-+", _hyphens),
        _rule("@#_*?!<>\\", r"@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>"),
        _rule("(", r"\(", _always("-LRB-")), _rule(")", r"\)", _always("-RRB-")),
        _rule("[", r"\[", _always("-LSB-")), _rule("]", r"\]", _always("-RSB-")),
        _rule("{", r"\{", _always("-LCB-")), _rule("}", r"\}", _always("-RCB-")),
        _rule("*", rf"[.,:/+\u2044@_$%&'*;<=>\\^`|~{SYMBOL}{_NAMED_SYMBOLS}]"),
    ]
