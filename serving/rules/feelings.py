# ruff: noqa: E501 (a lexicon: one line a list)
"""Which feeling a text speaks of: a small lexicon of feeling words and of situations that bring a feeling."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Feeling:
    """`words` name it or its situations (stems match as prefixes, written with *); `named` completes "that sounds
    ..."."""

    name: str
    pleasant: bool
    words: str
    named: tuple[str, ...]
    shared: tuple[str, ...]


FEELINGS = (
    Feeling(
        "grief", False,
        "grief griev* died dies dying passed death dead funeral lost losing loss mourn* widow* buried cancer miscarr* devastat* heartbroken heartbreak*",
        ("heartbreaking", "like a terribly painful loss", "devastating"),
        ("My heart aches with you.", "I am so sorry, and it saddens me deeply to read this.", "I feel the weight of that with you."),
    ),
    Feeling(
        "sadness", False,
        "sad sadness unhappy cry crying cried tears depress* miserable down upset hurt hurts miss missing missed divorce* breakup broke blue sorrow* sick hospital",
        ("really sad", "so painful", "like something that would weigh on anyone"),
        ("I feel sad along with you.", "I am so sorry, that touches me.", "It hurts me to hear that."),
    ),
    Feeling(
        "loneliness", False,
        "lonely alone lonel* isolat* nobody friendless abandoned ignored excluded homesick",
        ("so lonely", "like a very empty feeling", "really isolating"),
        ("I feel for you, nobody should have to carry that alone.", "Reading this, I feel that emptiness with you.", "That loneliness moves me."),
    ),
    Feeling(
        "fear", False,
        "afraid scared scary scar* terrif* fear* fright* horror nightmare* spider* snake* attack* robbed burglar* storm* tornado* hurricane* accident* crash* danger*",
        ("really frightening", "terrifying", "so scary"),
        ("I would be shaken too, and I feel that fright with you.", "My heart beats faster just reading this.", "I felt a chill with you there."),
    ),
    Feeling(
        "worry", False,
        "anxious anxiety nervous worr* apprehensive stress* overwhelm* panic* uneasy dread* exam* exams interview* surgery deadline* tense unsure test tests",
        ("really nerve-wracking", "like a lot to carry", "so stressful"),
        ("I feel that tension with you.", "I can feel how heavily this sits on you, and I am with you.", "I would be on edge too."),
    ),
    Feeling(
        "anger", False,
        "angry anger mad furious rage* annoy* irritat* frustrat* pissed hate* unfair rude stole stolen cheat* lied lying yell* loud noisy jerk broken scratched",
        ("infuriating", "so unfair", "really frustrating"),
        ("I feel angry on your behalf.", "That makes my blood boil too.", "I am frustrated right along with you."),
    ),
    Feeling(
        "jealousy", False,
        "jealous* envy envious envi*",
        ("hard to watch", "like a stinging kind of envy", "hard not to compare yourself with"),
        ("I feel that sting with you.", "I know that pang, and I feel it with you.", "That would prick at me too."),
    ),
    Feeling(
        "guilt", False,
        "guilt* asham* shame* regret* sorry embarrass* humiliat* awkward mistake* fault forgot blame* stupid tripped",
        ("really uncomfortable", "like it is weighing on your conscience", "so hard to shake off"),
        ("I cringe and ache with you a little.", "I feel how heavy this sits, and I do not think less of you.", "I feel for you, we all stumble."),
    ),
    Feeling(
        "disappointment", False,
        "disappoint* letdown jobless fail* rejected reject* fired unemploy* layoff laid discourag* hopeless gave bummed cancelled canceled flunk*",
        ("so disappointing", "really discouraging", "like a real letdown"),
        ("I feel that disappointment with you.", "My heart sank with yours.", "I am sorry, I was hoping for you as I read."),
    ),
    Feeling(
        "disgust", False,
        "disgust* gross nasty vomit* puke* smell* rotten filthy sickening",
        ("really revolting", "so unpleasant", "hard to stomach"),
        ("I shudder with you.", "My stomach turns along with yours.", "I feel that disgust too."),
    ),
    Feeling(
        "longing", False,
        "nostalgi* memories memory childhood remember* sentimental reminisc* younger reminds reminded old photos",
        ("like a precious memory", "bittersweet", "like something you hold dear"),
        ("It warms me and makes me a little wistful with you.", "I feel that tender longing too.", "That moves me."),
    ),
    Feeling(
        "pride", True,
        "proud pride accomplish* achiev* graduat* won winning promot* passed medal award* aced scholarship confident confidence",
        ("like something to be truly proud of", "wonderful", "like a great achievement"),
        ("I am so proud of you all with you!", "I feel that pride right along with you!", "That makes me beam too!"),
    ),
    Feeling(
        "joy", True,
        "happy happiness joy* glad wonderful amazing great delight* fun love loved smile* birthday wedding married engaged baby pregnant puppy content peaceful",
        ("wonderful", "so joyful", "like a truly happy time"),
        ("I am so happy for you!", "Your joy makes me smile too!", "That fills me with happiness as well!"),
    ),
    Feeling(
        "excitement", True,
        "excit* thrill* vacation trip concert anticipat* eager soon tickets cruise disney looking forward prepared ready",
        ("so exciting", "thrilling", "like something to look forward to"),
        ("I am excited right along with you!", "I can hardly wait with you!", "I feel that buzz too!"),
    ),
    Feeling(
        "gratitude", True,
        "grateful gratitude thank* bless* appreciat* kind kindness generous helped trust* faith* loyal caring gift surprise surprised surpris* impress*",
        ("heartwarming", "really touching", "like a true kindness"),
        ("That warms my heart too.", "I feel that warmth with you.", "I am moved along with you."),
    ),
    Feeling(
        "hope", True,
        "hope hopeful hoping hopes optimis* better improve* chance dream* wish",
        ("really hopeful", "like a bright prospect", "encouraging"),
        ("I am hoping right along with you.", "I share your hope.", "It lifts me up too."),
    ),
)  # fmt: skip
BY_NAME = {feeling.name: feeling for feeling in FEELINGS}
DIFFICULT = Feeling(
    "difficulty", False, "", ("like a lot to deal with", "really hard", "difficult"),
    ("I feel for you.", "I am with you in this.", "That touches me."),
)  # fmt: skip
_WEAK = frozenset(
    [
        "lost",
        "down",
        "old",
        "great",
        "love",
        "loved",
        "better",
        "soon",
        "ready",
        "passed",
        "gave",
        "broke",
        "kind",
        "sorry",
        "wish",
        "test",
        "tests",
        "fun",
        "old",
    ]
)
_NEGATIONS = frozenset(
    [
        "not",
        "no",
        "never",
        "isn't",
        "wasn't",
        "don't",
        "didn't",
        "can't",
        "cannot",
        "won't",
        "hardly",
        "without",
        "aren't",
    ]
)


@cache
def _lexicon() -> tuple[dict[str, str], list[tuple[str, str]]]:
    whole = {w: f.name for f in FEELINGS for w in f.words.split() if not w.endswith("*")}
    stems = sorted(
        ((w[:-1], f.name) for f in FEELINGS for w in f.words.split() if w.endswith("*")), key=lambda s: -len(s[0])
    )
    return whole, stems


@cache
def feeling_of_word(word: str) -> str | None:
    """The feeling that one lower-case word speaks of."""
    whole, stems = _lexicon()
    return whole.get(word) or next((name for stem, name in stems if word.startswith(stem)), None)


def words_of(text: str) -> list[str]:
    """Lower-case words, apostrophes kept."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower().replace("’", "'"))


def feelings_in(text: str) -> Counter[str]:
    """Feelings that a text speaks of, weighted: plain feeling words count 2, words with other meanings 1; negated ones
    are left out."""
    words, found = words_of(text), Counter[str]()
    for k, word in enumerate(words):
        name = feeling_of_word(word)
        if name and not _NEGATIONS & set(words[max(0, k - 2) : k]):
            found[name] += 1 if word in _WEAK else 2
    return found


def main_feeling(text: str) -> Feeling:
    """The feeling a text speaks of most (the first named wins a draw); DIFFICULT when it speaks of none."""
    found = feelings_in(text)
    return BY_NAME[found.most_common(1)[0][0]] if found else DIFFICULT
