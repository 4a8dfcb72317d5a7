"""What people and programs do to a text that was embedded before: seventeen kinds of edits.

The same pool of texts and the same draw give the same edit. Never looks at a vector: what an edit does to
the text's meaning is for the model to say.
"""

import random
import re
from collections import Counter

WORD = re.compile(r"[A-Za-z]{3,}")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
NEGATIONS = [
    (r"\bis\b", "is not"), (r"\bcan\b", "cannot"), (r"\benable", "disable"), (r"\bwith\b", "without"), (r"\bfree\b", "non-free"),
    (r"\bsupports?\b", "does not support"), (r"\bprovides\b", "does not provide"), (r"\bfast", "slow"), (r"\bsimple\b", "complex"),
    (r"\bclient\b", "server"),
]
FOOTERS = ["\n(c) 2024 Example Inc. All rights reserved.", "\nRead more", "\nWas this page helpful? Yes No", "\nLicensed under the MIT License."]


class Editor:
    """Edits texts; strange words and sentences come from the pool of texts."""

    def __init__(self, pool):
        self.random = random.Random()
        self.pool = pool
        self.vocabulary = [word for text in pool for word in WORD.findall(text)]
        self.frequency = Counter(word.lower() for word in self.vocabulary)
        self.kinds = {
            "white space": self.white_space, "punctuation": self.punctuation, "case": self.case, "number": self.number,
            "replace a word": self.replace_word, "typo": self.typo, "delete a word": self.delete_word, "insert a word": self.insert_word,
            "append a sentence": self.append_sentence, "header": self.header, "footer": self.footer, "markup": self.markup,
            "negate": self.negate, "replace three words": self.replace_three_words, "cut a sentence": self.cut_sentence,
            "rename": self.rename, "shift": self.shift,
        }

    def edit(self, text, kind, draw):
        """An edit of that kind, drawn by `draw`."""
        self.random = draw
        return self.kinds[kind](text)

    def strange_word(self):
        return self.random.choice(self.vocabulary)

    def pieces(self, text):
        """The text in words and the white space between them, and where among them words of three letters and more are."""
        pieces = re.findall(r"\s+|\S+", text)
        return pieces, [at for at, piece in enumerate(pieces) if WORD.search(piece)]

    def white_space(self, text):
        return self.random.choice([
            lambda: text.replace(" ", "  ", 3),
            lambda: re.sub(r"\s*\n\s*", " ", text) if "\n" in text else text + "\n",
            lambda: f"  {text} \n",
            lambda: re.sub(" ", "\n", text, count=2),
        ])()

    def punctuation(self, text):
        return self.random.choice([
            lambda: text[:-1] if text[-1:] in ".!?" else text + ".",
            lambda: text.replace(",", "", 1) if "," in text else text + " .",
            lambda: text.replace("'", "\u2019").replace('"', "\u201d") if "'" in text or '"' in text else text + "!",
            lambda: text.replace("-", " ", 1) if "-" in text else text + ";",
            lambda: text.replace(". ", "; ", 1) if ". " in text else "- " + text,
        ])()

    def case(self, text):
        return self.random.choice([text.lower(), text.upper(), text[0].swapcase() + text[1:]])

    def date(self):
        return f"2024-{self.random.randrange(1, 13):02}-{self.random.randrange(1, 29):02}"

    def number(self, text):
        numbers = list(re.finditer(r"\d+", text))
        if numbers:
            found = self.random.choice(numbers)
            other = abs(int(found.group()) % 1_000_000 + self.random.choice([1, 1, 1, 2, 5, 10, -1]))
            return text[: found.start()] + str(other) + text[found.end():]
        major, minor, patch = (self.random.randrange(to) for to in (9, 20, 20))
        return text + self.random.choice([f" (v{major}.{minor}.{patch})", f" Updated {self.date()}.", f" Version {major}.{minor}"])

    def replace_word(self, text):
        pieces, words = self.pieces(text)
        if not words:
            return f"{text} {self.strange_word()}"
        at = self.random.choice(words)
        strange = self.strange_word()
        pieces[at] = WORD.sub(lambda _: strange, pieces[at], count=1)
        return "".join(pieces)

    def typo(self, text):
        pieces, words = self.pieces(text)
        if not words:
            return text + "e"
        at = self.random.choice(words)
        word = pieces[at]
        place = self.random.randrange(len(word) - 1)
        before, letter, after = word[:place], word[place], word[place + 1:]
        pieces[at] = self.random.choice([before + after[0] + letter + after[1:], before + after, before + letter + letter + after])
        return "".join(pieces)

    def delete_word(self, text):
        pieces, words = self.pieces(text)
        if len(words) < 2:
            return text + " the"
        at = self.random.choice(words)
        return re.sub("  +", " ", "".join(pieces[:at] + pieces[at + 1:]))

    def insert_word(self, text):
        pieces, words = self.pieces(text)
        at = self.random.choice(words) if words else 0
        return "".join(pieces[:at] + [self.strange_word(), " "] + pieces[at:])

    def append_sentence(self, text):
        other = self.random.choice(self.pool)
        sentence = self.random.choice(SENTENCE_END.split(" ".join(other.split())))
        return text + ("" if text[-1:] in ".!?" else ".") + " " + " ".join(sentence.split()[:25])

    def header(self, text):
        return self.random.choice([
            f"Last updated: {self.date()}\n", "CONFIDENTIAL - Internal use only\n", f"Page {self.random.randrange(1, 20)} of 20\n",
            "## Overview\n", "Home > Docs > Packages > Details\n",
        ]) + text

    def footer(self, text):
        return text + self.random.choice([*FOOTERS, f"\nPage {self.random.randrange(1, 50)}"])

    def markup(self, text):
        pieces, words = self.pieces(text)
        how = self.random.randrange(3)
        if how == 0 and words:
            at = self.random.choice(words)
            pieces[at] = f"**{pieces[at]}**"
            return "".join(pieces)
        return f"<p>{text}</p>" if how == 1 else "* " + text.replace("&", "&amp;")

    def negate(self, text):
        for pattern, replacement in self.random.sample(NEGATIONS, len(NEGATIONS)):
            if re.search(pattern, text):
                return re.sub(pattern, replacement, text, count=1)
        return "Not " + text

    def replace_three_words(self, text):
        for _ in range(3):
            text = self.replace_word(text)
        return text

    def cut_sentence(self, text):
        sentences = SENTENCE_END.split(text)
        if len(sentences) >= 2:
            at = self.random.randrange(len(sentences))
            return " ".join(sentences[:at] + sentences[at + 1:])
        words = text.split()
        return " ".join(words[: max(1, len(words) * 3 // 4)])

    def rename(self, text):
        """What the text is about gets another name, wherever it stands: the rarest of its long words."""
        names = set(re.findall(r"[A-Za-z][\w.-]{3,}", text))
        if not names:
            return f"{text} {self.strange_word()}"
        name = max(names, key=lambda name: (len(name) > 5, -self.frequency[name.lower()], name))
        return text.replace(name, self.strange_word())

    def shift(self, text):
        """As a window that moves over a document: a tenth lost in front, another text's tenth behind."""
        words = text.split()
        moved = max(1, len(words) // 10)
        return " ".join(words[moved:] + self.random.choice(self.pool).split()[:moved])
