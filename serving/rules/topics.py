# ruff: noqa: E501 (a lexicon: one line a list)
"""What a text is about: everyday topics and the words that belong to them, so that "vet" answers "dog"."""

from __future__ import annotations

from functools import cache

from serving.rules.feelings import words_of

TOPICS = {  # stems match as prefixes, written with *
    "work": "job jobs work works worked working workplace boss bosses coworker* colleague* office career* fired hired layoff* promot* interview* shift shifts manager* salary raise client* customer* company employ* project* deadline* resign* retire* intern* paycheck business",
    "school": "school* class classes classroom exam exams test tests college* universit* teacher* professor* grade grades graduat* student* homework study studied studying studies essay* thesis degree* semester course* campus lecture* kindergarten tutor* scholarship*",
    "pets": "dog dogs cat cats puppy puppies kitten* pet pets vet bird birds hamster* rabbit* horse* animal* leash fur paw paws bark* treats shelter",
    "parents": "mom mum mother* dad father* parent* papa mama mommy daddy stepmother stepfather",
    "family": "family families sister* brother* sibling* cousin* uncle* aunt* nephew* niece* relative* twins",
    "elders": "grandmother* grandma* grandpa* grandfather* grandparent* nana granny gran grandad elderly",
    "children": "baby babies child children kid kids son sons daughter* toddler* newborn pregnan* birth infant* parenting diaper*",
    "love": "boyfriend* girlfriend* husband* wife wives spouse fiance* partner* marriage married marry wedding* engaged engagement anniversar* date dating dates divorc* breakup romantic propos* honeymoon valentine* ex",
    "friends": "friend* buddy buddies roommate* bestie pal pals reunion",
    "neighbours": "neighbor* neighbour* street block noise noisy fence landlord*",
    "home": "house home apartment* flat moved moving rent mortgage kitchen room bedroom bathroom roof garage basement furniture garden* lawn yard decorat* clean* couch door window*",
    "car": "car cars drive drives driving driver* drove truck* road* traffic tire* tyre* engine mechanic* parking license licence highway accident* crash* motorcycle* bike* bicycle",
    "money": "money bill bills debt* bank* loan* paid pay paying afford* savings dollar* rent budget* price* expens* lottery broke wallet cash credit tax taxes invest* mortgage purse",
    "health": "doctor* hospital* surgery sick ill illness cancer diagnos* pain medicine medication nurse* disease therapy therapist* injur* broken bone* recover* treatment* symptom* fever flu health* scan blood stroke clinic dentist* tooth teeth allerg* ankle knee leg arm",
    "death": "died dies die dead death dying funeral* passed grave grief griev* mourn* buried widow* loss memorial late",
    "body": "weight diet* gym exercis* workout* fitness running run marathon race pounds muscle* yoga healthy lost",
    "food": "food cook* dinner lunch breakfast restaurant* cake* pizza bake baked baking meal* eat eating ate recipe* kitchen coffee drink* taste* hungry pancake* bread burger* soup chocolate fridge chef sandwich*",
    "travel": "trip* vacation* travel* flight* plane airport beach* hotel cruise* abroad country tour* passport suitcase* camping hike* hiking mountain* lake island* luggage holiday*",
    "parties": "party parties birthday* christmas thanksgiving celebrat* gift gifts present presents surprise* guest* invit* halloween",
    "sports": "game games team* match play* player* football soccer basketball baseball tennis coach* champion* tournament* score* season win won winning trophy league swim* goal",
    "music": "music* song* band* concert* guitar* piano* sing singing singer* choir violin album* danc* stage audition*",
    "screens": "movie* film* show tv television series watch* video* netflix internet computer* laptop* phone* online website app screen text texted texts message* email* password",
    "books": "book* read reading novel* library writ* wrote author* story stories poem* letter* cookbook diary journal* handwriting",
    "weather": "storm* rain* snow* hurricane* tornado* thunder* weather flood* wind* cold hot sunny lightning fire fires earthquake*",
    "fear": "spider* snake* bug* roach* rat rats mouse mice bee bees wasp* ghost* nightmare* horror monster* dark haunted",
    "crime": "stole stolen steal* rob robbed robbery thief thieves burglar* police break-in scam* lied lie lies lying cheat* attack* gun shot murder* jail court lawyer*",
    "politics": "election* vote* president* government politic* news war congress protest*",
    "faith": "god church* pray* faith* religio* bible blessing* pastor mass",
    "shopping": "store* shop* bought buy buying order* sale deal mall clothes dress shoes shirt package deliver* return* refund* grocer* cashier line",
    "shame": "embarrass* tripped fell pants toilet vomit* puke* fart* awkward stain*",
    "military": "army navy military soldier* deploy* veteran* war marine*",
    "past": "childhood memories memory nostalg* remember* old photo* younger years",
    "art": "paint* draw drawing art artist* photo* picture* craft* knit* sew* sculpture exhibition museum*",
    "plants": "plant* flower* tree* garden* tomato* rose roses seed* harvest grow*",
    "luck": "lottery lucky luck winner prize* contest* raffle jackpot",
}  # fmt: skip


@cache
def _lexicon() -> tuple[dict[str, frozenset[str]], tuple[tuple[str, str], ...]]:
    whole: dict[str, set[str]] = {}
    stems = []
    for topic, words in TOPICS.items():
        for word in words.split():
            if word.endswith("*"):
                stems.append((word[:-1], topic))
            else:
                whole.setdefault(word, set()).add(topic)
    return {word: frozenset(topics) for word, topics in whole.items()}, tuple(stems)


@cache
def topics_of_word(word: str) -> frozenset[str]:
    """The topics that one lower-case word belongs to."""
    whole, stems = _lexicon()
    return whole.get(word, frozenset()) | {topic for stem, topic in stems if word.startswith(stem)}


def topics_in(text: str) -> frozenset[str]:
    """Every topic that a text has a word of."""
    return frozenset().union(*(topics_of_word(word) for word in words_of(text)))
