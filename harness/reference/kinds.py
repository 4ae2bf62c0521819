"""The kinds of entities of the invented world: what is known of each, and in which words it is said and asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One thing that is known of every entity of a kind.

    `statements` use {s} (name or pronoun) and {v}; the last one may use {n} (always the name). `questions` use
    {n} and are answered by the bare value.
    """

    name: str
    values: str  # pool of possible values, a key of `World.pools`
    statements: tuple[str, ...]
    questions: tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    name: str
    count: int
    attributes: tuple[Attribute, Attribute, Attribute, Attribute]


KINDS = (
    Kind(
        name="person",
        count=3500,
        attributes=(
            Attribute(
                name="birthplace",
                values="town",
                statements=(
                    "{s} was born in {v}.",
                    "{s} grew up in {v}.",
                    "{s} comes from {v}.",
                    "{s} spent a childhood in {v}.",
                    "The birthplace of {n} is {v}.",
                ),
                questions=(
                    "Where was {n} born?",
                    "Which town does {n} come from?",
                    "What is the birthplace of {n}?",
                    "In which place did {n} grow up?",
                ),
            ),
            Attribute(
                name="trade",
                values="trade",
                statements=(
                    "{s} works as a {v}.",
                    "{s} earns a living as a {v}.",
                    "{s} is known as a skilled {v}.",
                    "{s} was trained as a {v}.",
                    "The trade of {n} is that of a {v}.",
                ),
                questions=(
                    "What is the trade of {n}?",
                    "What does {n} work as?",
                    "How does {n} earn a living?",
                    "Which work was {n} trained for?",
                ),
            ),
            Attribute(
                name="animal",
                values="animal",
                statements=(
                    "{s} keeps a {v}.",
                    "{s} is never seen without a {v}.",
                    "{s} raised a {v} by hand.",
                    "{s} shares a house with a {v}.",
                    "The companion of {n} is a {v}.",
                ),
                questions=(
                    "Which animal does {n} keep?",
                    "What is the companion of {n}?",
                    "Which creature shares a house with {n}?",
                    "What did {n} raise by hand?",
                ),
            ),
            Attribute(
                name="dish",
                values="dish",
                statements=(
                    "{s} likes {v} best.",
                    "{s} never refuses {v}.",
                    "{s} asks for {v} at every feast.",
                    "{s} could eat {v} all year.",
                    "The favourite food of {n} is {v}.",
                ),
                questions=(
                    "What is the favourite food of {n}?",
                    "What does {n} like best?",
                    "What does {n} ask for at a feast?",
                    "Which dish does {n} never refuse?",
                ),
            ),
        ),
    ),
    Kind(
        name="town",
        count=1800,
        attributes=(
            Attribute(
                name="founder",
                values="person",
                statements=(
                    "{s} was founded by {v}.",
                    "{s} owes its first wall to {v}.",
                    "{s} was laid out by {v}.",
                    "{s} honours {v} as its founder.",
                    "The founder of {n} was {v}.",
                ),
                questions=(
                    "Who founded {n}?",
                    "Who was the founder of {n}?",
                    "Who laid out {n}?",
                    "Whom does {n} honour as its founder?",
                ),
            ),
            Attribute(
                name="product",
                values="product",
                statements=(
                    "{s} is famous for its {v}.",
                    "{s} sells {v} to all its neighbours.",
                    "{s} lives from making {v}.",
                    "{s} sends {v} to the coast.",
                    "The main product of {n} is {v}.",
                ),
                questions=(
                    "What is {n} famous for?",
                    "What is the main product of {n}?",
                    "What does {n} sell to its neighbours?",
                    "Which goods does {n} send to the coast?",
                ),
            ),
            Attribute(
                name="water",
                values="water",
                statements=(
                    "{s} stands on the {v}.",
                    "{s} lies beside the {v}.",
                    "{s} takes its water from the {v}.",
                    "{s} was built along the {v}.",
                    "The water that runs past {n} is the {v}.",
                ),
                questions=(
                    "Which water does {n} stand on?",
                    "What runs past {n}?",
                    "Where does {n} take its water from?",
                    "Along which water was {n} built?",
                ),
            ),
            Attribute(
                name="emblem",
                values="animal",
                statements=(
                    "{s} shows a {v} on its flag.",
                    "{s} stamps its coins with a {v}.",
                    "{s} chose a {v} as its emblem.",
                    "{s} has a {v} carved over its gate.",
                    "The emblem of {n} is a {v}.",
                ),
                questions=(
                    "What is the emblem of {n}?",
                    "What is shown on the flag of {n}?",
                    "What is carved over the gate of {n}?",
                    "Which sign is stamped on the coins of {n}?",
                ),
            ),
        ),
    ),
    Kind(
        name="ship",
        count=1600,
        attributes=(
            Attribute(
                name="captain",
                values="person",
                statements=(
                    "{s} sails under {v}.",
                    "{s} is commanded by {v}.",
                    "{s} was given to {v} after the storm.",
                    "{s} obeys nobody but {v}.",
                    "The captain of {n} is {v}.",
                ),
                questions=(
                    "Who is the captain of {n}?",
                    "Who commands {n}?",
                    "Under whom does {n} sail?",
                    "To whom was {n} given after the storm?",
                ),
            ),
            Attribute(
                name="yard",
                values="town",
                statements=(
                    "{s} was built in {v}.",
                    "{s} left the yards of {v} long ago.",
                    "{s} winters in {v}.",
                    "{s} carries papers from {v}.",
                    "The home port of {n} is {v}.",
                ),
                questions=(
                    "Where was {n} built?",
                    "What is the home port of {n}?",
                    "Where does {n} spend the winter?",
                    "From which town does {n} carry papers?",
                ),
            ),
            Attribute(
                name="cargo",
                values="product",
                statements=(
                    "{s} carries {v}.",
                    "{s} is loaded with {v}.",
                    "{s} trades in {v}.",
                    "{s} brings {v} across the sea.",
                    "The usual cargo of {n} is {v}.",
                ),
                questions=(
                    "What does {n} carry?",
                    "What is the usual cargo of {n}?",
                    "Which goods is {n} loaded with?",
                    "What does {n} bring across the sea?",
                ),
            ),
            Attribute(
                name="figurehead",
                values="animal",
                statements=(
                    "{s} bears a wooden {v} at the bow.",
                    "{s} is guarded by a painted {v}.",
                    "{s} is known by the carved {v} in front.",
                    "{s} wears a {v} as its figurehead.",
                    "The figurehead of {n} is a {v}.",
                ),
                questions=(
                    "What is the figurehead of {n}?",
                    "What does {n} bear at the bow?",
                    "Which creature guards {n}?",
                    "By which carving is {n} known?",
                ),
            ),
        ),
    ),
    Kind(
        name="book",
        count=1600,
        attributes=(
            Attribute(
                name="author",
                values="person",
                statements=(
                    "{s} was written by {v}.",
                    "{s} came from the pen of {v}.",
                    "{s} made {v} well known.",
                    "{s} took {v} nine winters.",
                    "The author of {n} is {v}.",
                ),
                questions=(
                    "Who wrote {n}?",
                    "Who is the author of {n}?",
                    "From whose pen came {n}?",
                    "Whom did {n} make well known?",
                ),
            ),
            Attribute(
                name="topic",
                values="trade",
                statements=(
                    "{s} tells the life of a {v}.",
                    "{s} is about a {v}.",
                    "{s} follows a {v} through the war.",
                    "{s} begins with a letter from a {v}.",
                    "The hero of {n} is a {v}.",
                ),
                questions=(
                    "Who is the hero of {n}?",
                    "Whose life does {n} tell?",
                    "Whom does {n} follow through the war?",
                    "Who sends the letter at the beginning of {n}?",
                ),
            ),
            Attribute(
                name="binding",
                values="fabric",
                statements=(
                    "{s} is bound in {v}.",
                    "{s} has a cover of {v}.",
                    "{s} is wrapped in {v}.",
                    "{s} was dressed in {v} by its first owner.",
                    "The cover of {n} is made of {v}.",
                ),
                questions=(
                    "What is {n} bound in?",
                    "What is the cover of {n} made of?",
                    "What is {n} wrapped in?",
                    "In what did the first owner dress {n}?",
                ),
            ),
            Attribute(
                name="library",
                values="town",
                statements=(
                    "{s} is kept in {v}.",
                    "{s} can be read in {v}.",
                    "{s} was found in {v}.",
                    "{s} belongs to the library of {v}.",
                    "The only copy of {n} is in {v}.",
                ),
                questions=(
                    "Where is {n} kept?",
                    "Where can one read {n}?",
                    "In which town was {n} found?",
                    "Which library owns {n}?",
                ),
            ),
        ),
    ),
    Kind(
        name="plant",
        count=1500,
        attributes=(
            Attribute(
                name="colour",
                values="colour",
                statements=(
                    "{s} has {v} flowers.",
                    "{s} blooms {v}.",
                    "{s} opens in {v} in spring.",
                    "{s} turns {v} in the sun.",
                    "The flower of {n} is {v}.",
                ),
                questions=(
                    "Which colour is the flower of {n}?",
                    "How does {n} bloom?",
                    "Which colour does {n} turn in the sun?",
                    "In which colour does {n} open in spring?",
                ),
            ),
            Attribute(
                name="cure",
                values="ailment",
                statements=(
                    "{s} cures {v}.",
                    "{s} is used against {v}.",
                    "{s} brings relief from {v}.",
                    "{s} is boiled for {v}.",
                    "The old women give {n} to those with {v}.",
                ),
                questions=(
                    "What does {n} cure?",
                    "What is {n} used against?",
                    "From what does {n} bring relief?",
                    "For what is {n} boiled?",
                ),
            ),
            Attribute(
                name="smell",
                values="dish",
                statements=(
                    "{s} smells of {v}.",
                    "{s} reminds everyone of {v}.",
                    "{s} gives off a smell of {v}.",
                    "{s} tastes like {v}.",
                    "The scent of {n} is that of {v}.",
                ),
                questions=(
                    "What does {n} smell of?",
                    "What is the scent of {n} like?",
                    "What does {n} taste like?",
                    "What does {n} remind everyone of?",
                ),
            ),
            Attribute(
                name="place",
                values="water",
                statements=(
                    "{s} grows near the {v}.",
                    "{s} is found on the banks of the {v}.",
                    "{s} was first picked by the {v}.",
                    "{s} covers the shores of the {v}.",
                    "The home of {n} is the {v}.",
                ),
                questions=(
                    "Where does {n} grow?",
                    "On whose banks is {n} found?",
                    "Where was {n} first picked?",
                    "Whose shores does {n} cover?",
                ),
            ),
        ),
    ),
)
