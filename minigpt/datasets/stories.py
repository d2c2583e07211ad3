"""Stories of people and things, and questions about them, each with its true answer.

In the manner of bAbI (Weston et al. 2015, arXiv 1502.05698): "Mary went to the office. Mary took
the milk. Mary ran to the garden. Where is the milk?" - garden. The kind of a question says how many
sentences, its facts, one must put together to answer: here the last two.
"""

PEOPLE = ("Mary", "John", "Sandra", "Daniel", "Emma", "Peter")
PLACES = ("kitchen", "garden", "office", "bedroom", "hallway", "cellar")
THINGS = ("apple", "football", "milk", "book", "lamp", "key")
MOVES = ("went to", "moved to", "walked to", "ran to")
TAKES = ("took", "picked up", "grabbed", "got")
DROPS = ("dropped", "put down", "left")


def story(rng, questions=4):
    """A story -> [(text, answer, kind)]: each text is what happened since the one before it, and
    a question. Three times something is asked: after 1, 2 and 3 further sentences, in any order."""
    world, told = World(rng), []
    for n in rng.permutation(3):
        sentences = [world.event() for _ in range(n + 1)]
        for question, answer, kind in different_questions(world, questions):
            told.append((" ".join([*sentences, question]), answer, kind))
            sentences = []  # the next question is about the same sentences
    return told


def different_questions(world, n):
    """At most n random questions, no two of them about the same: the answer to "Is Mary in the
    office?" may give away that to "Is Mary in the garden?"."""
    different = {}  # the later of two takes the place of the earlier
    for _ in range(n):
        question, answer, kind = world.ask()
        about = question.partition(" in the ")[0]
        different[about] = question, answer, kind
    return different.values()


class World:
    """Who is where, and who has what."""

    def __init__(self, rng):
        # A story takes 84 random numbers at most. Drawing them at once takes half the time.
        self.draws = iter(rng.random(100).tolist())
        self.people = rng.permutation(PEOPLE)[:3].tolist()
        self.things = rng.permutation(THINGS)[:3].tolist()
        self.place = {}  # person: place, once it was told
        self.holder = {}  # thing: the person who has it, None if it was dropped
        self.past = {}  # thing: the places where it has been, the latest last, once it was taken

    def pick(self, items):
        """One of the items, each with the same probability; an item may be in the list twice."""
        return items[int(next(self.draws) * len(items))]

    def event(self):
        """Something happens -> its sentence"""
        who = self.pick(self.people)
        mine = [thing for thing in self.things if self.holder.get(thing) == who]
        here = [thing for thing in self.things if self.can_take(who, thing)]
        deeds = ["move"]
        if here:
            deeds += ["take"] * 3  # often, so that who took a thing is not who took something last
        if mine:
            deeds += ["drop"] * 4  # mostly, so that things change places and hands
        deed = self.pick(deeds)
        if deed == "move":
            return self.move(who, mine)
        if deed == "take":
            return self.take(who, self.pick(here))
        return self.drop(who, self.pick(mine))

    def can_take(self, who, thing):
        """Whether the thing lies where the person is; one never seen so far may lie anywhere."""
        if who not in self.place or self.holder.get(thing):
            return False
        return thing not in self.past or self.past[thing][-1] == self.place[who]

    def move(self, who, mine):
        """A person goes to another place, and what the person has goes along."""
        place = self.pick([place for place in PLACES if place != self.place.get(who)])
        self.place[who] = place
        for thing in mine:
            self.past[thing].append(place)
        return f"{who} {self.pick(MOVES)} the {place}."

    def take(self, who, thing):
        self.holder[thing] = who
        self.past.setdefault(thing, [self.place[who]])
        return f"{who} {self.pick(TAKES)} the {thing}."

    def drop(self, who, thing):
        self.holder[thing] = None
        return f"{who} {self.pick(DROPS)} the {thing}."

    def ask(self):
        """A question that the sentences so far answer -> question, answer, kind"""
        who = self.pick(list(self.place))
        asks = [(f"Where is {who}?", self.place[who], "where is a person (1 fact)")]
        if len(self.past) > 1:  # so that a question has to say which thing it means
            asks += self.about_things(who)
        else:
            asks.append(self.yes_or_no(who, self.place[who], "is a person there (1 fact)"))
        return self.pick(asks)

    def about_things(self, who):
        """[(question, answer, kind)] about one thing, and one about how many the person has."""
        # Things that lie somewhere are fewer and harder to learn: they are twice as likely.
        lying = [thing for thing in self.past if not self.holder[thing]]
        thing = self.pick([*self.past, *lying])
        *before, place = self.past[thing]
        holder = self.holder[thing] or "nobody"
        asks = [
            (f"Where is the {thing}?", place, "where is a thing (2 facts)"),
            self.yes_or_no(f"the {thing}", place, "is a thing there (2 facts)"),
            (f"Who has the {thing}?", holder, "who has it (1 fact)"),
            self.how_many(who),
        ]
        if before and place not in before:  # else "before" could mean two times
            question = f"Where was the {thing} before the {place}?"
            asks += [(question, before[-1], "where was a thing (3 facts)")] * 6  # it is rare
        return asks

    def how_many(self, who):
        """How many things a person has; each is a fact, and so is that there is none."""
        n = list(self.holder.values()).count(who)
        number = ("none", "one", "two", "three")[n]
        facts = f"{n} facts" if n > 1 else "1 fact"
        return f"How many things does {who} have?", number, f"how many ({facts})"

    def yes_or_no(self, what, place, kind):
        """Whether it is in a place, the true one or another; yes is as likely as no."""
        other = self.pick([other for other in PLACES if other != place])
        asked = self.pick([place, other])
        return f"Is {what} in the {asked}?", "yes" if asked == place else "no", kind
