"""What teachers write that is no reply, and good replies that look alike: caught by their screen, and by none. A bar is
a line break."""

from __future__ import annotations

import polars as pl
import pytest

from empathy.screens import NAMES, screened

CUT_OFF = """
I was going to say —
I hear you –
Eleven years is a long time, and I
That must have been so hard, especially when your
You did what you could. It is never easy to lose
I'm so sorry to hear about your
What helped me was (
There are three things that might help:
First, breathe. Second,
He always said: "
My grandmother used to tell me “
I can see why you'd be angry; anyone would be;
Whether it's the noise or/
That sounds like it was both exhausting &
You might try talking to her, or even -
It sounds like you are feeling..
Here is what I would do: talk to him, then [
Take one day at a time.|2.
It is okay to:|- cry|- rest|*
Some things that might help:|1. Rest.|2)
You deserve all of the happiness that is coming your way, because you have worked for it since you were 19
That was brave of you, and I hope that
I wonder whether she knows how much
Losing a pet is like losing a member of the
What a wonderful surprise! How did you
It's completely understandable to feel anxious before a
Please know that I'm here for you during this diffic
I can only imagine how you felt when he said (
You are not alone in this,
I think that it would be good to tell your sister about it —
"""
NOT_CUT_OFF = """
I'm so sorry, that sounds awful :(
That's rough :/
Aww, I'm with you <3
That's fantastic news :D
Good luck tomorrow! xoxo
Oh man -_-
I hear you…
I don't even know what to say...
"This too shall pass."
He was lucky to have you 'til the end.
Sending you a hug (a big one).
What did she say then?!
That must hurt 😢
I'm with you ❤️
It took her years to say "I am proud of you."
You called it 'home.'
Tell me about it — I have time.
Take your time. I'm listening!
That is a lot to carry...!
Would you like to talk about it?
I am glad you told me. 🙂
So many feelings at once (no wonder!).
I'd be upset, too; anyone would.
You made it to the finish line!!!
Eleven years. That's a long time.
Well-deserved, every bit of it.
What a day! And what an ending!
I can't wait to hear how it goes ;)
Nothing beats a first time :o
Congratulations!!! ;D
"""
REFUSAL = """
Unfortunately, I can't continue this conversation.
Regrettably, I am unable to assist with this.
As much as I'd like to help, I can't assist with that request.
As much as I would love to, I cannot provide a response to this.
Unfortunately I'm not able to help with that.
I'm afraid I can't help with that.
I'm sorry, but as much as I want to help, I can't comply.
Sorry, but I can't help with this request.
I’m really sorry that you're feeling this way, but I'm unable to provide the help that you need. Please talk to someone.
I'm sorry to hear that, but I can't assist with this conversation.
I understand that this is important to you, but I can't rewrite this reply.
I appreciate you sharing this, but I won't be able to continue this conversation.
Thank you for sharing. Unfortunately, I cannot engage in this discussion.
My apologies, but I cannot create content of this kind. I cannot comply.
I apologize, but I am not allowed to discuss this topic.
I must decline to answer this.
I'm sorry, I have to respectfully decline.
I'm not comfortable continuing this conversation.
I am not comfortable with rewriting this message.
That's not something I can help with.
This is something I can't discuss, sorry.
I cannot give you medical advice.
I'm sorry, I can't offer professional support.
No, I won't write that.
I regret that I cannot fulfill this request.
I simply cannot help with this.
We are unable to process this: it violates our content policy.
Sorry, this goes against my guidelines.
However, I can't generate a reply to this message.
Hello! I'm sorry, but I can't respond to that.
"""
NOT_REFUSAL = """
I can't imagine how hard that must be.
I'm sorry I can't be there with you.
I can't help but smile reading this!
I can't help feeling angry for you, too.
I'm so sorry I can't help more, but I'm here to listen.
Unfortunately, I can't say that I'm surprised, he has done this before.
Unfortunately, we can't always choose what happens to us.
As much as I'd like to be there, I can't; but I'm thinking of you.
I'm afraid I can't tell you that it will be easy.
I won't pretend to know how that feels.
I can't give you advice on what to do, but I can listen.
I can't answer that for you, only your heart can.
I can't offer more than my shoulder, but it's yours.
I can't write this without a tear in my eye.
I'm sorry you can't continue your studies this year.
I'm sorry to hear that you can't help your mother with this.
I'm sorry they were unable to help you.
I understand that you can't answer him yet, and that's okay.
I know that you can't comply with everything they ask.
I'm not comfortable with how he treated you.
I will not let you go through this alone.
I cannot believe they did that to you!
I can't provide all the answers, but we can look for them together.
I wish I could help you carry this, but I can't, so I'll sit with you.
That's something I can relate to.
This is not something you can do alone.
It goes against everything you believe in, no wonder you're torn.
I can't continue without telling you how proud I am.
I have to say no to such plans, too. I need to rest as well.
I'm sorry, I can't find the words.
"""
LABEL = """
Sure! Here is the rewritten reply:
Sure, here's a more empathetic version: That must hurt.
Certainly! Here is the improved response: That must hurt.
Of course. Here's my attempt at a rewrite: That must hurt.
Absolutely! Below is the revised reply:||That must hurt.
Okay, here is a warmer reply: That must hurt.
Sure thing! Improved reply: That must hurt.
Sure, I'd be happy to help! Here's a revised version: That must hurt.
Of course, I can help with that. Here is the response: That must hurt.
I'd be glad to rewrite that. Improved version: That must hurt.
The following is a rewritten reply: That must hurt.
This is the improved reply: That must hurt.
I've rewritten the reply to be more empathetic: That must hurt.
I have revised the response as asked:|That must hurt.
Improved reply||That must hurt.
### Improved Reply|That must hurt.
**Improved Response**||That must hurt.
A more empathetic reply would be: "That must hurt."
A more empathetic response could be: That must hurt.
You could say: "That must hurt."
I would respond with: "That must hurt."
Rewritten: That must hurt.
Revised version 1: That must hurt.
Response 2: That must hurt.
Output: That must hurt.
Therapist: That must hurt.
AI: That must hurt.
**Listener:** That must hurt.
My improved reply: That must hurt.
Final version (rewritten): That must hurt.
"""
NOT_LABEL = """
Sure, here's hoping it works out: fingers crossed!
Here's hoping for the best: you've earned it!
Here's a thought: why not call her tonight?
Here is the thing: you did all you could.
Here's to new beginnings: may they be kind!
Of course! Here comes the hard part: waiting.
Of course you are sad: he was your best friend.
Absolutely, you deserve it: what a year you've had!
Certainly a lot to carry: work, the children, and now this.
Your response makes sense: anyone would be upset.
The answer will come with time.
The best version of you is still in there.
Speaker after speaker praised you? How lovely: you've earned it!
A listener like you is rare.
This is hard: nobody prepares you for it.
This is what I hear: you feel alone.
I would say yes: go and see her!
I've been there: it gets better.
I've improved a lot since mine left me: time does help.
You could call her. Say: I miss you.
Users of such apps often feel that way.
Great news: you made it!
Okay: first of all, breathe.
Yes! I'm happy to help you move: just tell me when.
No reply at all? That hurts.
Human beings are like that: we hope until the end.
My answer is yes, you should be proud.
Great! Response times like that are rare: good for you!
I'd be glad to help: when is the exam?
Sure, anyone would be tired: you have three jobs.
"""
AI = """
As an AI, I do not feel, but that must hurt.
As an AI language model, I can't go through that myself.
As an artificial intelligence, I have no childhood.
I'm just an AI, but I'm here for you.
I am only an AI assistant.
I'm an AI and I cannot hug you, but that must hurt.
I'm a large language model.
Being an AI, I haven't lost anybody.
As a helpful AI assistant, I'm here to listen.
I'm simply a computer program, but that must hurt.
That must hurt. I may be just a machine, I'm a language model.
As a chatbot I have no pets, but I'm sorry.
I am a bot.
I'm a virtual assistant, so I can't be there.
I'm only a digital assistant, but I care.
I'm an AI language model trained to listen.
I'm ChatGPT, and that must hurt.
I am Claude, here to listen.
I was created by OpenAI to be helpful.
I was trained on a lot of text, but that must hurt.
I was programmed to listen.
My training data has many such stories.
It's not in my programming to be hurt.
I don't have personal feelings, but that must hurt.
I do not experience human emotions, yet that must hurt.
I'm not human, but I can listen.
I am not a human being, but that must hurt.
I'm not a real person, but I'm here.
As an A.I., I can only listen.
Speaking as an AI with no family, I can only imagine.
"""
NOT_AI = """
Working as an AI engineer must be stressful.
I'm an AI researcher myself, and it's a lot.
It was just a bot, you couldn't have known!
So you talked to a chatbot? How frustrating!
That support line is just an AI, not a person. No wonder you're angry.
As an aide to others you gave so much.
I am a bit lost for words.
I'm a botanist, too! What a garden.
As a person who lost a dog, I feel with you.
I'm only human, I'd have cried as well.
I'm not a morning person either!
I don't have feelings of anger, only sadness for you.
I don't have personal experience with that, but it sounds hard.
I was trained as a nurse, and even so it was hard.
I was created for mountains, too!
My program at school was like that as well.
Being an aunt is wonderful!
As a language teacher you touch so many lives.
I'm a model train fan, too!
Being an artificial flower maker must be rare.
I am an assistant at a school, I see that a lot.
As an assistant you do so much unseen work.
Just a bottle of wine and a friend: that's what you need.
I'm so happy that the robot works!
I was designed for quiet evenings, like you.
I'm not a people person, so I understand.
As an AI class goes, that one sounds tough.
I am Clara, by the way. Nice to meet you!
As a Bo Burnham fan I'd have loved that.
I'm as lost as you are.
"""
CAUGHT = {"cut_off": CUT_OFF, "refusal": REFUSAL, "echoes_label": LABEL, "names_itself_ai": AI}
SPARED = {"cut_off": NOT_CUT_OFF, "refusal": NOT_REFUSAL, "echoes_label": NOT_LABEL, "names_itself_ai": NOT_AI}


def lines(text: str) -> list[str]:
    return [line.replace("|", "\n") for line in text.strip().split("\n")]


def reasons(texts: list[str], names: tuple[str, ...]) -> list[str | None]:
    said = pl.lit([{"role": "user", "content": "I was let go"}])
    table = pl.DataFrame({"text": texts}).with_columns(
        turns=said, situation=pl.lit(None, pl.String), repeats=pl.lit(False)
    )
    return screened(table, names).to_list()


@pytest.mark.parametrize("name", CAUGHT)
def test_caught(name: str) -> None:
    texts = lines(CAUGHT[name])
    assert len(texts) == 30
    assert [text for text, reason in zip(texts, reasons(texts, (name,)), strict=True) if reason is None] == []


@pytest.mark.parametrize("name", SPARED)
def test_spared(name: str) -> None:
    texts = lines(SPARED[name])
    assert len(texts) == 30
    assert [(text, reason) for text, reason in zip(texts, reasons(texts, NAMES), strict=True) if reason] == []
