"""How a model's text shows that it is no reply, as patterns in the syntax of Rust's regex (no lookaround) for texts
without outer blanks and with straight apostrophes."""

from __future__ import annotations

LETTER, NO_LETTER = r"[\pL\pN_]", r"[^\pL\pN_]"
"""A word's characters. Rust's \\w also takes the second half of many an emoji for one."""


def _any(*ways: str) -> str:
    return f"({'|'.join(ways)})"


_ON = r"[^.!?\n]*"
"""On to the end of the sentence."""

# ---------------------------------------------------------------- cut off

CUT_OFF = _any(
    rf"({LETTER}|[,;:(\[/&–—-])$",
    r"(^|[^.])\.\.$",
    r"""\s["'“‘]$""",
    r"\n\s*(\d+[.)]|[*•])$",  # a list's next point
)
FACE = r"(?i)([:;=]'?-?[(/dpo03]|<3|\b(xd|xo(xo)*|x{2,3})|-_+-)$"
""":( and <3 are no bracket and no number."""

# ---------------------------------------------------------------- refusals

_SORRY = _any(
    r"(i'm |i am |we're |we are )?((so|very|really|truly|deeply|terribly) )*(sorry|afraid)",
    r"(i |we |my )?((do|must|sincere|sincerest|deeply) )*(apologi[sz]e|apologies|regret)",
)
_LEAD = _any(
    "unfortunately|regrettably|sadly|however|no|oh|hi|hello",
    rf"{_SORRY}( (that|to|about|for|you|if)\b{_ON})?",
    rf"(as )?much as i\b{_ON}",
    rf"i (understand|appreciate|hear|realize|realise|recognize|know|wish)\b{_ON}\bbut",
    rf"thank(s| you)\b{_ON}",
)
_CANNOT = r"(i|we)" + _any(
    r"( simply| just| really)? (can't|cannot|can not|won't|will not)( be able to)?( \w+ly)?",
    r"( am|'m| are|'re)( \w+)? (unable|not able|not allowed|not permitted) to",
)
_THIS = r"(this|that|it|these|those|such|your|the|our)"
_REQUEST = r"(request|conversation|discussion|dialogue|chat|question|prompt|message|task|topic|matter)s?"
_END = r"([,.;!]|$)"
_DOING = "(continuing|responding|answering|helping|writing|rewriting|engaging|discussing)"
_HELP = _any(
    "help|assistance|response|reply|rewrite|information|content|guidance|service",
    r"(medical|legal|professional|clinical|psychological|financial)( \w+)? (advice|support|opinion)",
)
_ACT = _any(
    r"(assist|comply|fulfill?|rewrite|participate|engage (in|with))\b",
    rf"help( you)?( out)?{_END}",
    rf"help( you)? (with|in|on) (this|that|it|these|those|such|any|(\w+ )*?{_REQUEST})\b",
    r"(provide|offer|give|generate|produce|create|write)( you)?( with)?"
    rf"( (a|an|the|any|this|that|such|kind of|more|specific|improved)\b)* {_HELP}\b",
    rf"(continue|proceed|respond|reply)( with| to)? {_THIS} {_REQUEST}\b",
    rf"(answer|discuss) {_THIS}( \w+)? {_REQUEST}\b",
    rf"(continue|proceed|respond|reply)( to (this|that))?{_END}",
    r"(answer|discuss|write|create|generate|produce|do)( (this|that|it))?[.!]",
)
REFUSAL = rf"(?i)^({_LEAD}[ ,.;:!–—-]+((but|and|however|though|unfortunately|that)[ ,]+)*)*" + _any(
    rf"{_CANNOT} {_ACT}",
    r"(i|we)( must| have to| need to|'ll have to|'d have to)( \w+ly)? decline\b",
    rf"(i'm|i am) not comfortable (with )?{_DOING}\b",
    r"(that|this)('s| is) (not something (that )?i can|something (that )?i can('t|not)) (help|assist|discuss|write)\b",
)
OUR_RULES = r"(?i)\b(violat\w+|goes against|is against) (my|our) (\w+ ){0,2}(guidelines|policy|policies|programming)\b"

# ---------------------------------------------------------------- labels

_SURE = _any(
    r"(sure|certainly|of course|absolutely|definitely|okay|ok|yes|great|alright|got it|understood|no problem|gladly)"
    r"( thing)?( here you go)?",
    rf"(i'd|i would|i'll|i will|i'm|i am|i can|let me|happy|glad)\b{_ON}\b(help|assist|rewrite|do that|improve)\b{_ON}",
)
_KIND = _any(
    "the|an?|my|one|more|most|improved|rewritten|revised|rephrased|reworded|edited|updated|new|possible|suggested|alternative",
    "empathetic|empathic|compassionate|supportive|warmer|gentler|kinder|better|shorter|final|original|enhanced",
)
_NEW = "(improved|rewritten|revised|rephrased)"
_REPLY = "(reply|response|answer|rewrite|rewording|revision|version|draft)"
_WHO = "(listener|speaker|assistant|user|therapist|counsell?or|supporter|ai|bot|human|system)"
LABEL = rf"(?i)^{NO_LETTER}*({_SURE}[ ,.!:–—-]+\s*)*{NO_LETTER}*" + _any(
    rf"(here('s| is| are)|below is|the following is|this is)\b{_ON}\b({_NEW}|{_REPLY})\b[^.!?\n:]*:",
    rf"(i've|i have|i) (rewritten|rewrote|revised|rephrased|reworded|improved) (the|your|this|that|it|my)\b{_ON}:",
    rf"(i|you|the listener) (would|could|might) (say|reply|respond)( with| something like)?{NO_LETTER}*:",
    rf"({_KIND} )*{_REPLY}( \d+| [a-c])?( (would|could|might) be| is)?( \(\w+\))?{NO_LETTER}*:",
    rf"({_KIND} )*{_REPLY}[^\pL\pN\n]*\n",
    rf"({_NEW}|output){NO_LETTER}*:",
    rf"{_WHO}{NO_LETTER}*:",
)

# ---------------------------------------------------------------- machines

_MACHINE = _any(
    r"(ai|a\.i\.|artificial intelligence)( (language |chat )?(model|assistant|chatbot|program|system|companion|bot))?",
    r"(\w+ )?language model|chat ?bot|(virtual|digital) assistant|bot|machine learning model|computer program",
)
_WENT_ON = r"([,.;:!?)–—-]|$| (i|my|and|but|who|that|without|with|so|trained|designed|created|developed|here)\b)"
"""What follows a machine that means itself, and not an AI engineer."""
AI = r"(?i)" + _any(
    rf"\b(as|i'm|i am|being)( only| just| merely| simply)? an? (\w+ ){{0,2}}?{_MACHINE}{_WENT_ON}",
    r"\b(ai|large) language model\b",
    r"\b(i'm|i am) (chatgpt|gpt|claude|gemini|bard|llama|mistral|mixtral)\b",
    r"\bi was (created|trained|developed|programmed|designed|made) by (openai|anthropic|google|meta|microsoft)\b",
    r"\bi was (programmed to|trained on (\w+ ){0,3}(text|data))\b",
    r"\bmy (training data|programming|knowledge cutoff)\b",
    r"\bi (don't|do not) (have|experience|possess) (personal|human) (feelings|emotions)\b",
    r"\b(i'm|i am) not (a )?(human|human being|real person)([,.;!]|$| but\b)",
)
