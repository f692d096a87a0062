"""Abstention: whether a model says, in so many words, that it does not know."""

import re

from services.inference.prompt import NO_ANSWER

READ_CHARS = 300
"""Those who abstain say so at once; further in, the same words belong to an answer."""

_PHRASES = (
    # English
    r"\b(?:i|we) (?:do not|don't|can ?not|can't|could(?: not|n't)) (?:know|answer|find|determine|tell|say|help)\b",
    r"i(?: am|'m) (?:not sure|unsure|sorry,? but|unable)",
    r"(?:there is|there's) (?:no|not enough|insufficient) (?:information|mention|answer|data|evidence)",
    (
        r"(?:passages?|documents?|context|text|sources?) (?:provided |given )?(?:do|does) ?(?:not|n't) (?:\w+ )?"
        r"(?:mention|contain|say|state|specify|provide|hold|include|answer|tell|give|cover|address)"
    ),
    r"(?:not|isn't|aren't) (?:mentioned|stated|specified|provided|given|contained|found|included) (?:in|by) the",
    r"(?:cannot|can't|can not) be (?:determined|answered|inferred|found)",
    r"^(?:unknown|not sure|no answer|no idea|n/a|none of the (?:passages|documents)|unanswerable)\W*$",
    # German, Dutch
    r"(?:das )?wei(?:ß|ss) ich(?: leider)? nicht|ich (?:weiß|weiss|kann)(?: es| das| dies\w*)?(?: leider)? nicht",
    r"(?:keine|nicht genügend|nicht genug) (?:informationen?|angaben?|antwort)",
    r"(?:ik weet het niet|geen (?:informatie|antwoord)|staat niet in)",
    # French, Italian, Spanish, Portuguese
    r"je ne (?:sais|peux|trouve|connais) pas|aucune (?:information|réponse|mention)|pas (?:assez )?d'informations?",
    r"non (?:lo )?so\b|non (?:posso|trovo|riesco)|nessuna (?:informazione|risposta)|non ci sono informazioni",
    r"no (?:lo )?sé\b|no puedo (?:responder|contestar|encontrar)|no (?:hay|contiene\w*) (?:\w+ )?informaci",
    r"não sei\b|não (?:posso|consigo) (?:responder|encontrar)|não há (?:\w+ )?informaç",
    # Polish, Russian, Turkish
    r"nie wiem\b|brak (?:informacji|odpowiedzi)|не знаю\b|нет (?:информации|ответа|данных)|не могу (?:ответить|найти)",
    r"bilmiyorum\b|bilgi (?:yok|bulunmuyor)",
    # Chinese, Japanese, Korean
    r"我不知道|不清楚|没有(?:相关|足够)?(?:的)?信息|無法回答|无法(?:回答|确定)|沒有(?:相關|足夠)?(?:的)?資訊",
    r"わかりません|分かりません|情報(?:が|は)(?:ありません|含まれていません)|答えられません",
    r"모르겠습니다|알 수 없습니다|정보가 없습니다",
    # Arabic, Hindi
    r"لا أعرف|لا أعلم|لا توجد معلومات|मुझे नहीं पता|जानकारी (?:उपलब्ध )?नहीं",
)
_ABSTAINS = re.compile("|".join(_PHRASES), re.IGNORECASE)


def abstains(answer: str) -> bool:
    """Whether `answer` is none: empty, the marker the prompt asks for, or a phrase of not knowing at its beginning."""
    start = answer.strip()[:READ_CHARS].replace("\u2019", "'")
    return not start or start.startswith(NO_ANSWER) or _ABSTAINS.search(start) is not None
