"""What the demo model knows about the fog: questions, answers, and questions held out of training.

Data only. Every answer is true of this product as `docs/` describes it; when the product changes,
this file and the trained model change with it.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing a user may ask, and the one answer the model learns.

    Attributes:
        answer: One to three sentences.
        questions: Paraphrases that are trained.
        held_out: Paraphrases that are only evaluated.
        noun: A name that `NOUN_QUESTIONS` turns into further questions, or "".
    """

    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    noun: str = ""


NOUN_QUESTIONS: Final = (
    "What is {}?",
    "What's {}?",
    "Explain {}.",
    "Explain {} to me.",
    "Tell me about {}.",
    "What does {} mean?",
    "Can you explain {}?",
    "Describe {}.",
    "What do you mean by {}?",
    "Say something about {}.",
    "What is the meaning of {}?",
    "Can you tell me what {} is?",
    "I want to know about {}.",
    "I would like to know what {} is.",
    "What about {}?",
    "Give me a short explanation of {}.",
)
NOUN_QUESTIONS_HELD_OUT: Final = ("Could you tell me about {}?", "Please explain what {} is.")

TOPICS: Final = (
    Topic(
        "Hello! I am the demo model of this fog. Ask me for a sum, a comparison, a sensor limit, "
        "or how the fog works.",
        ("Hello", "Hi", "Hello!", "Hello, you", "Hi, fog", "Hi there", "Good morning", "Hey",
         "Good evening", "Hello, model", "Greetings"),
        ("Hello there", "Hi, model"),
    ),
    Topic(
        "I am a very small language model that was made for this fog. My layers are spread over "
        "several devices, and every word you read came through all of them.",
        ("Who are you?", "What are you?", "And who are you?", "Tell me about yourself.",
         "What is your name?", "Introduce yourself.", "Are you a language model?",
         "Which model are you?", "Are you a person?"),
        ("So who are you?", "What model are you?"),
    ),
    Topic(
        "I can add numbers up to 99, compare two numbers, say whether a sensor reading is past "
        "its limit, and explain how this fog works.",
        ("What can you do?", "What do you know?", "How can you help me?", "What can I ask you?",
         "Help", "Help me", "What are you good at?", "What questions can you answer?",
         "Show me what you can do.", "What else can you do?", "Are you able to help me?"),
        ("What are you able to do?", "What can you help me with?"),
    ),
    Topic(
        "You are welcome.",
        ("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Thank you very much",
         "Great, thanks"),
        ("Many thanks",),
    ),
    Topic(
        "Goodbye. The fog stays up until you stop it.",
        ("Bye", "Goodbye", "See you", "Good night", "See you later", "Bye bye"),
        ("Goodbye then",),
    ),
    Topic(
        "A fog is a group of unequal devices that serve one language model together. No device "
        "needs to hold the whole model: each one holds some layers, and they talk over MQTT.",
        ("What is this fog?", "What is fog computing?", "How does the fog work?",
         "How does this work?"),
        ("How does this fog work?",),
        "a fog",
    ),
    Topic(
        "E2LLM serves a language model over many unequal devices. It plans which device holds "
        "which layers, moves the data over MQTT, and offers one OpenAI-compatible endpoint over "
        "HTTP.",
        ("What does e2llm do?", "What is E2LLM for?", "Why should I use E2LLM?",
         "What is this product?"),
        ("What is E2LLM good for?",),
        "E2LLM",
    ),
    Topic(
        "Run e2llm up. It starts a broker, Redis, the planner, the gateway and six nodes on this "
        "machine, and the dashboard opens at 127.0.0.1:8080.",
        ("How do I start the fog?", "How do I start a fog?", "How can I run the fog?",
         "How do I begin?", "How do I get started?", "Start the fog",
         "Which command starts the fog?", "How do I launch it?", "What does e2llm up do?"),
        ("How can I start the fog?", "How do I launch the fog?"),
        "e2llm up",
    ),
    Topic(
        "Install e2llm on the device, give it its own user name and password at the broker, and "
        "run python -m nodes there. It measures itself, says that it is ready, and the planner "
        "finds a place for it.",
        ("How do I add a device?", "How can I add a device?", "How do I add a node?",
         "How do I join the fog?", "How does a new device join?", "Add a device",
         "I want to add a device.", "How do I connect a new device?",
         "How do I add another device to the fog?"),
        ("How do I add a new device to the fog?", "How can I add another node?"),
    ),
    Topic(
        "Stop the node on that device. It says that it is leaving, the planner makes a new plan "
        "without it, and its requests go on elsewhere.",
        ("How do I remove a device?", "How can I remove a node?",
         "How do I take a device out of the fog?", "Remove a device",
         "How does a device leave the fog?"),
        ("How can I remove a device?",),
    ),
    Topic(
        "The broker notices that the device is gone and tells everyone. Its requests go back to "
        "the queue with the tokens they have, another replica continues them, and the planner "
        "makes a new plan.",
        ("What happens when a device fails?", "What happens if a device dies?",
         "What if a node is lost?", "What happens when I unplug a device?",
         "What happens if a node crashes?", "What happens when a node dies?",
         "What if a device fails?", "A device died. What now?"),
        ("What happens when a node fails?", "What if a device dies?"),
    ),
    Topic(
        "A replica is a group of devices that together hold the whole model, each with a range of "
        "its layers. A fog can have several replicas, for prefill, for decode or for both.",
        ("Why do we need a replica?", "What are replicas?", "How many devices make a replica?"),
        ("What are replicas for?",),
        "a replica",
    ),
    Topic(
        "A stage is one range of layers on one device. The stages of a replica form a pipeline: "
        "each takes the output of the stage before it.",
        ("What are stages?", "What does a stage do?", "What is a stage of a replica?"),
        ("What is a pipeline stage?",),
        "a stage",
    ),
    Topic(
        "Prefill is the pass over your whole prompt. It fills the KV cache and ends with the "
        "first token of the answer.",
        ("What happens in prefill?", "What does prefill do?", "What is a prefill replica?"),
        ("What happens during prefill?",),
        "prefill",
    ),
    Topic(
        "Decode makes the answer, one token at a time. Each token passes through all stages of a "
        "decode replica and starts the next round.",
        ("What happens in decode?", "What does decode do?", "What is a decode replica?",
         "What is decoding?"),
        ("What happens during decode?",),
        "decode",
    ),
    Topic(
        "Prefill needs much computing and decode needs fast memory, so different devices are good "
        "at each. With separate replicas a long prompt does not hold up the answers of others.",
        ("Why are prefill and decode separate?", "Why do you split prefill and decode?",
         "Why separate prefill from decode?", "What is the difference between prefill and decode?"),
        ("Why are prefill and decode split?",),
    ),
    Topic(
        "The planner decides which devices form a replica and which layers each one holds. It "
        "uses what the devices measured, a genetic algorithm and dynamic programming, and plans "
        "again when the fog changes.",
        ("What does the planner do?", "How does the planner work?", "How does planning work?",
         "Who makes the plan?"),
        ("What is the planner for?",),
        "the planner",
    ),
    Topic(
        "The gateway is where applications connect. It checks a request, turns it into tokens, "
        "picks the replicas and streams the answer back over HTTP.",
        ("What does the gateway do?", "How does the gateway work?", "What is a gateway?"),
        ("What is the gateway for?",),
        "the gateway",
    ),
    Topic(
        "The broker is the MQTT server, Mosquitto for example. All devices, the planner and the "
        "gateway talk through it, and each has its own user name.",
        ("What does the broker do?", "Which broker do you use?", "Why is there a broker?",
         "What is a broker?"),
        ("What is the broker for?",),
        "the broker",
    ),
    Topic(
        "A node is the program that runs on a device. It measures the device, loads its layers, "
        "and runs prefill and decode for its stages.",
        ("What does a node do?", "What are nodes?", "How does a node work?"),
        ("What is a node for?",),
        "a node",
    ),
    Topic(
        "MQTT is a small protocol for messages between devices. In this fog everything but the "
        "weights and the HTTP endpoint travels over it.",
        ("Why do you use MQTT?", "Why MQTT?", "How do you use MQTT?", "Is this MQTT?"),
        ("Why does the fog use MQTT?",),
        "MQTT",
    ),
    Topic(
        "The KV cache keeps the keys and values of all tokens so far, so they are computed only "
        "once. Prefill stages send it, layer by layer, to the decode stages.",
        ("Why is there a KV cache?", "What is in the KV cache?", "How does the KV cache work?",
         "What is KV?"),
        ("What is the KV cache for?",),
        "the KV cache",
    ),
    Topic(
        "Telemetry is what devices report about themselves, such as load, memory and temperature. "
        "The planner keeps it in Redis and plans again when a change matters.",
        ("What is telemetry for?", "Where does telemetry go?", "Which telemetry do devices send?"),
        ("Why do devices send telemetry?",),
        "telemetry",
    ),
    Topic(
        "Redis keeps the telemetry and the journal of requests. The fog keeps serving without it, "
        "only with less memory of the past.",
        ("Why is there a Redis?", "What is Redis for?", "Do I need Redis?",
         "What is stored in Redis?"),
        ("What do you use Redis for?",),
        "Redis",
    ),
    Topic(
        "Run e2llm plan, or open GET /fog/plan at the gateway. You see the replicas, their roles, "
        "the layers of each device, and why each device got its place.",
        ("How do I see the plan?", "How can I see the plan?", "Where is the plan?",
         "Show me the plan.", "Which command shows the plan?", "How do I view the plan?",
         "What does e2llm plan do?"),
        ("Where can I see the plan?", "How do I look at the plan?"),
        "e2llm plan",
    ),
    Topic(
        "The plan says which devices form each replica, which role it has and which layers each "
        "device holds. It also states the speed it expects.",
        ("What is in the plan?", "What does the plan say?", "What does the plan contain?"),
        ("What is in a plan?",),
        "the plan",
    ),
    Topic(
        "The planner leaves a device idle when the fog is faster without it, for example when it "
        "is slow or its link is slow. The reason stands in the plan: run e2llm plan.",
        ("Why was my device left idle?", "Why is my device idle?", "Why is a device idle?",
         "Why does my device do nothing?", "Why is my node not used?", "My device is idle. Why?",
         "Why was my device left out?"),
        ("Why was my node left idle?", "Why is this device idle?"),
    ),
    Topic(
        "A genetic algorithm tries many plans, keeps the good ones and mixes them. Here it "
        "decides which devices form a group, and dynamic programming then splits the layers.",
        ("Why do you use a genetic algorithm?", "How does the genetic algorithm work?",
         "What is a GA?"),
        ("What does the genetic algorithm do?",),
        "a genetic algorithm",
    ),
    Topic(
        "Dynamic programming finds the best split of the layers over the devices of a group, so "
        "that the slowest stage is as fast as it can be.",
        ("How are the layers split?", "How do you split the layers?", "Who splits the layers?",
         "How is the model split over the devices?"),
        ("How is the model split?",),
        "dynamic programming",
    ),
    Topic(
        "A token is a piece of text: a word, a part of a word or a digit. The model reads and "
        "writes tokens.",
        ("What are tokens?", "How long is a token?", "What is one token?"),
        ("What are the tokens?",),
        "a token",
    ),
    Topic(
        "TTFT is the time to the first token: how long you wait until the answer begins.",
        ("What is the time to first token?", "How is TTFT measured?"),
        ("What does TTFT stand for?",),
        "TTFT",
    ),
    Topic(
        "TPOT is the time per output token: how fast the answer goes on once it has begun.",
        ("What is the time per output token?", "How is TPOT measured?"),
        ("What does TPOT stand for?",),
        "TPOT",
    ),
    Topic(
        "Run e2llm chat and type a question. The answer streams in token by token, from the "
        "devices of the fog.",
        ("How do I chat?", "How do I chat with the model?", "How can I talk to the model?",
         "What does e2llm chat do?", "Which command lets me chat?", "How do I ask a question?"),
        ("How can I chat with the model?",),
        "e2llm chat",
    ),
    Topic(
        "Run e2llm doctor. It checks the broker, the ports, the packages and the devices, and "
        "says what to mend.",
        ("How do I find a problem?", "Something is wrong. What do I do?",
         "What does e2llm doctor do?", "The fog does not start.", "Why does the fog not start?",
         "How do I check my installation?", "It does not work.", "Which command checks the fog?"),
        ("Something does not work. What do I do?", "How do I check the fog?"),
        "e2llm doctor",
    ),
    Topic(
        "Run e2llm bench. It sends requests to the fog and prints throughput, TTFT and TPOT at "
        "the median and the 99th percentile.",
        ("How do I measure the speed?", "How fast is the fog?", "What does e2llm bench do?",
         "How can I run a benchmark?", "Which command measures speed?"),
        ("How do I measure how fast the fog is?",),
        "e2llm bench",
    ),
    Topic(
        "Run e2llm chaos. It takes devices away while requests run, and shows that the answers go "
        "on.",
        ("How do I test failures?", "What does e2llm chaos do?", "How can I test a failure?",
         "Which command breaks devices?"),
        ("How do I test a failing device?",),
        "e2llm chaos",
    ),
    Topic(
        "Run e2llm simulate. It predicts how a fog would serve a workload, without starting any "
        "device.",
        ("How do I simulate a fog?", "What does e2llm simulate do?",
         "Can I try a fog without devices?", "Which command simulates a fog?"),
        ("How can I simulate a fog?",),
        "e2llm simulate",
    ),
    Topic(
        "Send the same requests that you would send to OpenAI, to the gateway at "
        "127.0.0.1:8080/v1. Any OpenAI client works when you set its base URL.",
        ("How do I call the API?", "How can my application use the fog?", "Is there an API?",
         "How do I use the API?", "Which API do you have?", "Does my OpenAI client work?",
         "How do I use the OpenAI client?"),
        ("How can I use the API?", "How do I connect my application?"),
        "the API",
    ),
    Topic(
        "Publish the JSON of the HTTP body on your prompts topic over MQTT. The tokens come back "
        "on your replies topic.",
        ("Can I ask over MQTT?", "How does a sensor ask the model?",
         "How do I send a prompt over MQTT?", "Can I use the model without HTTP?"),
        ("How can I ask over MQTT?",),
    ),
    Topic(
        "Open 127.0.0.1:8080 in a browser. The dashboard shows the devices, the plan, and the "
        "tokens as they pass through the stages.",
        ("Where is the dashboard?", "How do I open the dashboard?", "What does the dashboard show?",
         "Is there a dashboard?"),
        ("How can I open the dashboard?",),
        "the dashboard",
    ),
    Topic(
        "Press Ctrl+C where e2llm up runs. It stops the nodes, the gateway, the planner, Redis "
        "and the broker.",
        ("How do I stop the fog?", "How can I stop the fog?", "Stop the fog",
         "Which command stops the fog?", "How do I shut down?"),
        ("How do I shut the fog down?",),
    ),
    Topic(
        "Run e2llm up with --model and the folder of a Hugging Face model of the Llama family. "
        "Each device then reads only the weights of its own layers.",
        ("How do I use another model?", "Can I use my own model?", "How do I change the model?",
         "Which models can I use?", "Can you run a larger model?"),
        ("How can I use another model?",),
    ),
    Topic(
        "Yes. A small device gets few layers, and a device that would slow the fog down is left "
        "out.",
        ("Can I use a slow device?", "Can I use a small device?", "Does a Raspberry Pi work?",
         "Can I use a Raspberry Pi?", "Can I use old devices?"),
        ("Can I use an old device?",),
    ),
    Topic(
        "No. Nothing requires a GPU. A device with one can use it.",
        ("Do I need a GPU?", "Is a GPU needed?", "Does it run without a GPU?",
         "Must I have a GPU?"),
        ("Do I need a graphics card or GPU?",),
    ),
    Topic(
        "No. The devices, the broker and the model are yours, and prompts are not written to the "
        "logs.",
        ("Do you need the internet?", "Does my data leave the house?",
         "Do you send my data to a cloud?", "Are my prompts logged?", "Is my data sent away?"),
        ("Does my data leave my house?",),
    ),
)  # fmt: skip
