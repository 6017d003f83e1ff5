"""The words of the demo corpus: how people ask, and of what. Data only."""

from typing import Final

WORD_SUMS: Final = (
    "What is {a} plus {b}?", "What is {a} plus {b}?", "What's {a} plus {b}?",
    "How much is {a} plus {b}?", "{a} plus {b}", "{a} plus {b}?", "And {a} plus {b}?",
    "Add {a} and {b}.", "Add {a} to {b}.", "Please add {a} and {b}.", "Can you add {a} and {b}?",
    "What is the sum of {a} and {b}?", "Sum of {a} and {b}", "Give me the sum of {a} and {b}.",
    "Calculate {a} plus {b}.", "Compute {a} plus {b}.", "What do you get if you add {a} and {b}?",
    "How much do {a} and {b} make?", "How much is {a} and {b} together?",
    "Tell me what {a} plus {b} is.", "What does {a} plus {b} equal?",
    "I have {a} sensors and get {b} more. How many do I have?",
    "There are {a} devices and {b} join. How many are there?",
)  # fmt: skip
SIGN_SUMS: Final = (
    "{a} + {b}", "{a} + {b} =", "{a} + {b} =", "{a}+{b}", "{a}+{b}=", "{a} + {b} = ?", "{a} + {b}?",
    "What is {a} + {b}?", "What is {a} + {b}?", "What's {a} + {b}?", "What is {a}+{b}?",
    "How much is {a} + {b}?", "And {a} + {b}?", "Calculate {a} + {b}.", "Compute {a} + {b}.",
    "Please compute {a} + {b}.", "Solve {a} + {b}.",
)  # fmt: skip
COMPLETIONS: Final = (
    "{a} + {b} =", "{a} + {b} =", "{a} + {b} =", "{a} plus {b} is", "{a} plus {b} equals",
)  # fmt: skip
IS_FORMS: Final = (
    "Is {a} {word} than {b}?", "Is {a} {word} than {b}?", "Tell me, is {a} {word} than {b}?",
    "And is {a} {word} than {b}?", "Is the number {a} {word} than {b}?",
)  # fmt: skip
WHICH_FORMS: Final = (
    "Which is {word}, {a} or {b}?", "Which is {word}: {a} or {b}?", "What is {word}, {a} or {b}?",
    "Which number is {word}, {a} or {b}?", "Is {a} or {b} {word}?",
)  # fmt: skip
COMPARE_FORMS: Final = (
    "Compare {a} and {b}.", "Compare {a} with {b}.", "Please compare {a} and {b}.", "{a} or {b}?",
    "How does {a} compare to {b}?",
)  # fmt: skip
EQUAL_FORMS: Final = ("Is {a} equal to {b}?", "Are {a} and {b} equal?", "Is {a} the same as {b}?")
PLACES: Final = (
    "cellar", "kitchen", "attic", "garden", "garage", "office", "barn", "greenhouse", "hall",
    "workshop", "server room", "cold store", "pump house", "stable", "living room",
)  # fmt: skip
UNITS: Final = ("degrees", "percent", "volts", "amps", "bar", "watts", "decibels", "")
UPPER_FORMS: Final = (
    "The sensor in the {place} reads {a} {unit}, the limit is {b}. Is that too high?",
    "The sensor in the {place} reads {a} {unit}. The limit is {b}. Is that too high?",
    "The sensor in the {place} reads {a} {unit} and the limit is {b}. Is it too high?",
    "The {place} sensor reads {a} {unit}, limit {b}. Too high?",
    "The {place} is at {a} {unit}. Is that above the limit of {b}?",
    "A sensor reads {a} {unit}. Is that over the limit of {b}?",
    "Is a reading of {a} {unit} too high if the limit is {b}?",
    "It is {a} {unit} in the {place} and the maximum is {b}. Is that too much?",
    "reading {a}, limit {b}", "reading={a} limit={b}", "Reading {a}, limit {b}. Alarm?",
)  # fmt: skip
LOWER_FORMS: Final = (
    "The sensor in the {place} reads {a} {unit}, the minimum is {b}. Is that too low?",
    "The {place} sensor reads {a} {unit}, minimum {b}. Too low?",
    "The {place} is at {a} {unit}. Is that below the minimum of {b}?",
    "Is a reading of {a} {unit} too low if the minimum is {b}?", "reading {a}, minimum {b}",
    "reading={a} minimum={b}",
)  # fmt: skip
OFF_TOPIC_FORMS: Final = (
    "What is the capital of {}?", "Where is {}?", "Who invented {}?", "Write a poem about {}.",
    "Tell me a story about {}.", "How do I cook {}?", "Why is {} so expensive?",
    "What colour is {}?", "Translate {} into French.", "Do you like {}?",
    "Who wrote a book about {}?", "How old is {}?", "What is the weather in {}?",
    "Sing a song about {}.", "Who won {}?", "What is the price of {}?", "When was {} built?",
    "How far is it to {}?", "Is {} healthy?", "Draw a picture of {}.",
    "What do you think about {}?", "How many people live in {}?", "Write a program for {}.",
    "Can I eat {}?", "What is {}?", "What is {}?", "Explain {}.", "Tell me about {}.",
    "How does {} work?", "What does {} do?", "Can you explain {}?", "Why do you use {}?",
)  # fmt: skip
OFF_TOPIC_THINGS: Final = (
    "France", "the moon", "bread", "cheese", "Japan", "the sea", "a cat", "my dog", "London",
    "football", "chess", "coffee", "the president", "music", "a horse", "Mars", "a bicycle",
    "the war", "love", "rice", "Berlin", "a castle", "winter", "the sun", "a train", "fish",
    "the internet", "a computer", "a phone", "a bank", "a robot", "Africa", "the king", "physics",
    "an apple", "Spain", "a house", "gold", "history",
)  # fmt: skip
OFF_TOPIC_LONE: Final = (
    "Tell me a joke.", "What time is it?", "How are you today?", "I am hungry.",
    "What should I wear?", "Who is your mother?", "Why is the sky blue?",
    "What is the meaning of life?", "Once upon a time", "Lorem ipsum", "What day is it?", "asdf",
)  # fmt: skip
OFF_TOPIC_HELD_OUT: Final = (
    "What is the capital of Italy?", "Write a poem about spring.", "How do I cook pasta?",
    "Who won the race?", "Tell me a story about a dragon.", "Where is Paris?",
    "What is the weather in Rome?", "Who wrote Hamlet?", "What colour is grass?",
    "Do you like tea?", "Tell me another joke.", "How old is the earth?",
)  # fmt: skip
SYSTEM_MESSAGES: Final = (
    "You are a helpful assistant.", "You are the demo model of a fog.", "Answer briefly.",
    "Be polite and brief.", "You are an assistant for devices.", "Answer in English.",
    "You help people with sensors and sums.", "Be concise.",
    "You are a helpful assistant. Answer in one sentence.", "Today is a good day. Answer the user.",
    "You are E2LLM.",
)  # fmt: skip
OTHER_OPERATIONS: Final = (
    "What is {} times {}?", "What is {} minus {}?", "{} - {}", "{} * {}", "What is {} - {}?",
    "How much is {} times {}?", "Divide {} by {}.", "Subtract {} from {}.", "{} / {} =",
)  # fmt: skip
LARGE_NUMBERS: Final = (
    "What is {} plus {}?", "{} + {}", "{} + {} =", "Add {} and {}.", "Is {} greater than {}?",
)  # fmt: skip
OPENINGS: Final = (
    "Please:", "Hey,", "Hello,", "Hi!", "A question:", "Quick question:", "Tell me:", "Okay.",
    "And now:", "Next:", "Good. Now:", "Excuse me,",
)  # fmt: skip
