"""Questions of every task, as data. `<region>` is the region asked about; `<region1>` and `<region2>` are the first and the second of two.

Labeling asks the first of a list, always; training draws from all of them with a seed, so that the labeler does not hang on one wording.
"""

from __future__ import annotations

# Of one region: its name.
CLASSIFY: tuple[str, ...] = (
    "Name the object in <region>.",
    "Which object does <region> show?",
    "Give the category of <region>.",
    "Say in a word or two what <region> is.",
    "What kind of thing is marked by <region>?",
    "Look at <region> and name it.",
    "Tell me the name of what lies inside <region>.",
    "To which category does <region> belong?",
    "What would you call the thing in <region>?",
    "Identify <region>.",
    "Put a name to <region>.",
    "What is the object of <region>? Answer with its name.",
    "Choose the category that fits <region>.",
    "In which class does <region> fall?",
    "Name what you see at <region>, nothing else.",
    "What do people call what is shown in <region>?",
)

# Behind a question for names: which vocabulary they are to be from, by the name that training knew it by (RegionGPT's task-guided suffix).
FROM_VOCABULARY = "Use the names of {vocabulary}."

# Of all regions of a picture in one turn: their names; {choices} lists the regions by number.
CLASSIFY_ALL: tuple[str, ...] = (
    "Name the object in each of these regions. {choices}",
    "{choices} Give the category of each, by number.",
    "Which object does each region show? {choices}",
    "These regions are marked. {choices} Name them all, in order.",
    "Say in a word or two what each region is. {choices}",
    "{choices} What kind of thing is each of them?",
    "Look at all of these and name them one after the other. {choices}",
    "Put a name to every region. {choices}",
    "{choices} Identify each one and answer with number and name.",
    "To which category does each of these belong? {choices}",
)

# Of one region: a short caption (RegionGPT has 43 such).
CAPTION: tuple[str, ...] = (
    "Describe <region> in a few words.",
    "Write a short caption for <region>.",
    "What can be seen in <region>? Keep it short.",
    "Sum up <region> in one phrase.",
    "Give a brief description of <region>.",
    "In one short sentence, what is <region>?",
    "Caption <region>.",
    "Put <region> into a few words.",
    "What does <region> contain, briefly?",
    "Say shortly what <region> looks like.",
    "Write one line about <region>.",
    "How would you caption <region>?",
    "A short phrase for <region>, please.",
    "Describe the thing in <region> with few words.",
    "Tell me in brief about <region>.",
    "What is there in <region>? One phrase.",
    "Give <region> a caption of one line.",
    "Shortly describe what <region> marks.",
    "Express <region> in a short phrase.",
    "What would a short label under <region> say?",
    "Note down what <region> shows, in brief.",
    "Describe <region> as a catalogue would, in one line.",
    "In few words, what is at <region>?",
    "Write the shortest caption that still fits <region>.",
    "Brief caption of <region>.",
    "What does the marked part <region> show? Be brief.",
    "Say what <region> is and how it looks, shortly.",
    "One phrase for the content of <region>.",
    "Summarise what is inside <region>.",
    "Give me a few words on <region>.",
    "If <region> were a picture of its own, what would its caption be?",
    "State briefly what you see in <region>.",
    "Describe only <region>, in a short sentence.",
    "What stands in <region>, in a few words?",
    "Make a short description of the area <region>.",
    "Tell what <region> depicts, in one phrase.",
    "Word a brief caption for the region <region>.",
    "What is depicted at <region>? Short answer.",
    "Name and briefly describe <region>.",
    "Write down <region> in a handful of words.",
    "Give a one-line description of <region>.",
    "Look at <region> and caption it.",
    "How could <region> be described in few words?",
    "Report shortly what <region> holds.",
)

# Of one region: everything (10).
DESCRIBE: tuple[str, ...] = (
    "Describe <region> in detail.",
    "Tell me everything that can be seen of <region>.",
    "Write a full description of <region>, with its look and its parts.",
    "What does <region> look like? Mention colours, shape and surroundings.",
    "Give a long caption for <region>.",
    "Describe <region> so that somebody could draw it.",
    "Explain at length what is visible in <region>.",
    "Go through <region> and describe what is there, piece by piece.",
    "Write several sentences about <region>.",
    "Give a thorough account of <region>, without guessing at what cannot be seen.",
)

# Of two regions: the relation from the first to the second (10).
RELATE: tuple[str, ...] = (
    "How is <region1> related to <region2>?",
    "What is the relation of <region1> to <region2>?",
    "Say how <region1> stands to <region2>.",
    "In which way do <region1> and <region2> belong together?",
    "Describe what connects <region1> with <region2>.",
    "What does <region1> have to do with <region2>?",
    "Between <region1> and <region2>, what relation do you see?",
    "Name the relation from <region1> to <region2>.",
    "How do <region1> and <region2> stand to each other?",
    "What is <region1> doing with respect to <region2>?",
)

# Of two regions: left or right.
HORIZONTAL: tuple[str, ...] = (
    "Is <region1> left of <region2> or right of it?",
    "Is <region1> to the left or to the right of <region2>?",
    "Does <region1> lie left or right of <region2>?",
    "Compare the places of <region1> and <region2>, left or right?",
    "Seen from <region2>, is <region1> to the left or to the right?",
)

# Of two regions: above or below.
VERTICAL: tuple[str, ...] = (
    "Is <region1> above <region2> or below it?",
    "Does <region1> lie above or below <region2>?",
    "Is <region1> higher up or further down than <region2>, above or below?",
    "Compare the places of <region1> and <region2>, above or below?",
    "Seen from <region2>, is <region1> above or below?",
)

# Of two regions: larger or smaller.
SIZE: tuple[str, ...] = (
    "Is <region1> larger or smaller than <region2>?",
    "Compare <region1> with <region2> in size, larger or smaller?",
    "Does <region1> cover a larger or a smaller area than <region2>?",
)

# Of two regions: yes or no.
OVERLAP: tuple[str, ...] = (
    "Do <region1> and <region2> overlap?",
    "Is any part of <region1> within the box of <region2>?",
    "Do the boxes of <region1> and <region2> meet?",
)

# Of several regions: which one an expression means; {choices} lists them by number (15).
REFER: tuple[str, ...] = (
    "Which one is {expression}? {choices}",
    "Find {expression} among these. {choices}",
    "{choices} Which of them is {expression}?",
    "Choose the region that shows {expression}. {choices}",
    "Look for {expression}. {choices} Answer with the number.",
    "One of these is {expression}. {choices} Which?",
    "{choices} Give the number of {expression}.",
    "Point out {expression}. {choices}",
    "Where is {expression}? {choices}",
    "Among these regions, which fits {expression} best? {choices}",
    "Match {expression} to a region. {choices}",
    "{choices} Which number belongs to {expression}?",
    "Somebody speaks of {expression}. Which region do they mean? {choices}",
    "Select {expression}. {choices}",
    "{choices} Say which one shows {expression}.",
)


def all_questions() -> tuple[str, ...]:
    """Return the questions that a fresh tokenizer learns its words from, besides names. Another list here gives another embedded labeler."""
    return (
        *CLASSIFY,
        *CAPTION,
        *DESCRIBE,
        *RELATE,
        *HORIZONTAL,
        *VERTICAL,
        *SIZE,
        *OVERLAP,
        *REFER,
    )
