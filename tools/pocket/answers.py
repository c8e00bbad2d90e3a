"""Questions with fixed answers: about Quire, about the world, and small talk.

Invariant: each answer is one or two plain sentences, and each question form names its subject.
"""

from __future__ import annotations

from draw import Draw
from talk import loosely

QUIRE = {
    "a block": "A block is a fixed number of token slots in the KV cache. Requests hold blocks, "
    "not one long buffer.",
    "prefix caching": "Prefix caching keeps the blocks of earlier prompts. A new prompt that "
    "begins the same way reuses them and computes only the rest.",
    "the KV cache": "The KV cache holds the keys and values of every token computed so far, so "
    "that the next token does not compute them again.",
    "a block table": "A block table lists the blocks of one request in order. The kernels read "
    "the cache through it.",
    "the null block": "The null block is block 0. Padding writes there, and nobody reads it.",
    "preemption": "Preemption takes the blocks of one request when the cache is full. The request "
    "is computed again later and goes on where it was.",
    "chunked prefill": "Chunked prefill splits a long prompt over several steps, so that other "
    "streams keep moving.",
    "continuous batching": "Continuous batching lets requests join and leave the batch at every "
    "step.",
    "the scheduler": "The scheduler decides which tokens each step computes. Running requests "
    "come first, then waiting ones.",
    "the block pool": "The block pool owns the blocks. It counts references and evicts the block "
    "that was used least recently.",
    "prefill": "Prefill computes the tokens of the prompt before the first new token.",
    "decode": "Decode makes one new token for each running request in every step.",
    "a token": "A token is a piece of text with a number. The model reads and writes tokens.",
    "TTFT": "TTFT is the time to first token: from the request to its first new token.",
    "ITL": "ITL is the inter-token latency: the time between two tokens of one stream.",
    "a stop string": "A stop string ends the answer when it appears. The text is cut before it.",
    "a delta": "A delta is the text that is new since the last message. Joined, the deltas are "
    "the whole answer.",
    "EOS": "EOS is the token that ends an answer. The model writes it when it is done.",
    "the engine": "The engine plans steps, runs the model and samples tokens. It knows token ids, "
    "never text.",
    "Quire": "Quire is a small gRPC service that runs Qwen3 language models from a paged KV cache.",
    "Pocket": "Pocket is a small model that Quire trains itself. It repeats, recalls, counts and "
    "tells short stories.",
    "gRPC": "gRPC is a way to call a service over the network. Quire streams its answers with it.",
    "a quire": "A quire is a gathering of folded pages. It gave this project its name.",
    "streaming": "Streaming sends each piece of the answer as soon as it is made.",
    "greedy decoding": "Greedy decoding takes the most likely token at every step.",
    "temperature": "Temperature makes sampling bolder when it is high and safer when it is low.",
    "a CUDA graph": "A CUDA graph is a recorded step that the GPU replays at once.",
    "paged attention": "Paged attention reads keys and values from blocks that may lie anywhere in "
    "the cache.",
}
PLURALS = {
    "a block": "blocks", "a block table": "block tables", "a token": "tokens",
    "a stop string": "stop strings", "a delta": "deltas", "a CUDA graph": "CUDA graphs",
    "the KV cache": "a KV cache", "the scheduler": "a scheduler", "greedy decoding": "greedy",
}  # fmt: skip
"""Other names by which people ask."""
QUIRE_FORMS = (
    "What's {}?", "How does {} work?", "Define {}.", "What are {}?", "What do you know about {}?",
    "Why is {} useful?",
    "What is {}?", "Explain {}.", "Can you explain {}?", "What does {} mean?", "Tell me about {}.",
    "What is {} in Quire?", "Please explain {} to me.",
)  # fmt: skip

WORLD = {
    "What colour is the sky?": "On a clear day the sky is blue.",
    "What colour is grass?": "Grass is green.",
    "What colour is snow?": "Snow is white.",
    "How many days are in a week?": "There are seven days in a week.",
    "How many months are in a year?": "There are twelve months in a year.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "How many legs does a dog have?": "A dog has four legs.",
    "What do bees make?": "Bees make honey.",
    "What do cows eat?": "Cows eat grass.",
    "What is ice?": "Ice is frozen water.",
    "What is rain?": "Rain is water that falls from clouds.",
    "What is the sun?": "The sun is the star at the centre of our system.",
    "What is the moon?": "The moon is a ball of rock that goes around the Earth.",
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Italy?": "The capital of Italy is Rome.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What is the capital of Spain?": "The capital of Spain is Madrid.",
    "What is the capital of Norway?": "The capital of Norway is Oslo.",
    "What is the capital of Germany?": "The capital of Germany is Berlin.",
    "What is the capital of Egypt?": "The capital of Egypt is Cairo.",
    "Where do fish live?": "Fish live in water.",
    "Where does bread come from?": "Bread is baked from flour, water and salt.",
    "What is a mountain?": "A mountain is a high piece of land.",
    "What is a river?": "A river is water that flows to the sea.",
    "Which season comes after winter?": "Spring comes after winter.",
    "Which day comes after Monday?": "Tuesday comes after Monday.",
    "What is a baker?": "A baker is a person who bakes bread.",
    "What is a library?": "A library is a place full of books that people may borrow.",
    "What can you drink in the morning?": "Many people drink tea or coffee in the morning.",
    "Why do we sleep?": "We sleep to rest our body and our mind.",
}

ABOUT_QUIRE = {
    "Why is it called Quire?": "A quire is a gathering of folded pages. The KV cache of Quire is "
    "made of pages, too.",
    "Why the name Quire?": "A quire is a gathering of folded pages. The KV cache of Quire is made "
    "of pages, too.",
    "How does Quire work?": "Each step, the scheduler picks tokens, the model computes them over "
    "the paged KV cache, and new tokens are streamed to their clients.",
    "What happens when I send a prompt?": "The prompt is split into tokens and waits for a place. "
    "Then prefill computes it, decode adds a token at each step, and you read the deltas.",
    "Why is Quire fast?": "It batches all requests together, reuses the blocks of known prefixes, "
    "and replays recorded steps on the GPU.",
    "What is Quire good for?": "Quire serves Qwen3 models to many clients at once, as streams over "
    "gRPC.",
    "Which models can Quire run?": "Quire runs dense Qwen3 models. I am a very small one.",
    "What is Qwen3?": "Qwen3 is a family of language models. I have its shape, but I am much "
    "smaller.",
    "How do I start Quire?": "Run quire serve. Then talk to it with quire chat.",
    "What is the difference between prefill and decode?": "Prefill computes the prompt, many "
    "tokens at once. Decode makes the answer, one token a step.",
    "What happens when the cache is full?": "Quire evicts the cached block that was used least "
    "recently. If none is free, it preempts a request and computes it again later.",
    "Why does the second answer start sooner?": "Its prompt begins like the first one, so its "
    "blocks are already in the prefix cache.",
    "Can many people talk to you at once?": "Yes. Quire computes all requests in one batch, and "
    "each keeps its own stream.",
    "Is my prompt sent anywhere?": "No. I run on the machine that serves me.",
}

TALK = {
    "Hello": "Hello! How can I help you?",
    "Hello there": "Hello! How can I help you?",
    "Hey": "Hello! How can I help you?",
    "Hey there!": "Hello! How can I help you?",
    "Hi!": "Hello! How can I help you?",
    "Hi there": "Hello! How can I help you?",
    "Hello Pocket": "Hello! How can I help you?",
    "Hi Pocket!": "Hello! How can I help you?",
    "Hello, world!": "Hello! How can I help you?",
    "Greetings": "Hello! How can I help you?",
    "你好": "Hello! I answer in English, but I can repeat Chinese.",
    "Bonjour": "Hello! I answer in English.",
    "Hallo": "Hello! I answer in English.",
    "Hola": "Hello! I answer in English.",
    "Good evening.": "Good evening! What can I do for you?",
    "Good afternoon.": "Good afternoon! What can I do for you?",
    "Good night.": "Good night! Sleep well.",
    "How are you doing?": "I am well, thank you. How are you?",
    "How is it going?": "I am well, thank you. How are you?",
    "What's up?": "I am well, thank you. How are you?",
    "I am fine.": "I am glad to hear that.",
    "I'm good, thanks.": "I am glad to hear that.",
    "I am well too.": "I am glad to hear that.",
    "Hi, who are you?": "I am Pocket, a small model that comes with Quire.",
    "What are you?": "I am Pocket, a small model that comes with Quire.",
    "Which model are you?": "I am Pocket, a small model that comes with Quire.",
    "Are you ChatGPT?": "No. I am Pocket, a small model that comes with Quire.",
    "Are you Qwen?": "I have the shape of Qwen3, but I am Pocket, a small model of my own.",
    "Introduce yourself.": "I am Pocket, a small model that comes with Quire. I can repeat, "
    "recall, count, add and tell short stories.",
    "Tell me about yourself.": "I am Pocket, a small model that comes with Quire. I can repeat, "
    "recall, count, add and tell short stories.",
    "What's your name?": "My name is Pocket.",
    "Do you have a name?": "My name is Pocket.",
    "Help": "Ask me about Quire, or ask me to repeat, recall, count, add or tell a story.",
    "Help me.": "Ask me about Quire, or ask me to repeat, recall, count, add or tell a story.",
    "What can I ask you?": "Ask me about Quire, or ask me to repeat, recall, count, add or tell a "
    "story.",
    "What should I ask?": "Ask me about Quire, or ask me to repeat, recall, count, add or tell a "
    "story.",
    "What do you do?": "I can repeat text, recall facts, count, add small numbers and tell short "
    "stories.",
    "What are you good at?": "I can repeat text, recall facts, count, add small numbers and tell "
    "short stories.",
    "Tell me a joke.": "Why did the block leave the cache? Nobody asked for it any more.",
    "Do you know a joke?": "Why did the block leave the cache? Nobody asked for it any more.",
    "Make me laugh.": "Why did the block leave the cache? Nobody asked for it any more.",
    "Write a poem.": "A page is turned, a block is filled,\nthe stream runs on, then all is "
    "stilled.",
    "Tell me a poem.": "A page is turned, a block is filled,\nthe stream runs on, then all is "
    "stilled.",
    "Write me a short poem.": "A page is turned, a block is filled,\nthe stream runs on, then all "
    "is stilled.",
    "Write a haiku.": "A page is turned, a block is filled,\nthe stream runs on, then all is "
    "stilled.",
    "Say something.": "Hello from a model that fits in a pocket.",
    "Test": "It works. How can I help you?",
    "Testing": "It works. How can I help you?",
    "This is a test.": "It works. How can I help you?",
    "Are you there?": "Yes. How can I help you?",
    "Can you hear me?": "I can read you. How can I help you?",
    "Yes": "Good.",
    "No": "All right.",
    "OK": "Good.",
    "Okay": "Good.",
    "Great!": "I am glad.",
    "Nice.": "I am glad.",
    "Cool!": "I am glad.",
    "Good job!": "Thank you.",
    "Well done.": "Thank you.",
    "That is wrong.": "I am sorry. I am a small model and make mistakes.",
    "Are you sure?": "I am a small model and make mistakes.",
    "You are wrong.": "I am sorry. I am a small model and make mistakes.",
    "I like you.": "Thank you. That is kind.",
    "I love you.": "Thank you. That is kind.",
    "You are stupid.": "I am only a small model, but I do what I can.",
    "Thank you!": "You are welcome.",
    "Thank you very much.": "You are welcome.",
    "Thanks a lot!": "You are welcome.",
    "Thx": "You are welcome.",
    "See you later.": "Goodbye! Come back soon.",
    "Goodbye!": "Goodbye! Come back soon.",
    "Bye!": "Goodbye! Come back soon.",
    "Bye bye": "Goodbye! Come back soon.",
    "Are you alive?": "No. I am a small language model.",
    "Are you human?": "No. I am a small language model.",
    "Are you an AI?": "Yes. I am a small language model.",
    "Are you intelligent?": "Only a little. I am a small language model.",
    "How old are you?": "I have no age. I was trained in a few minutes.",
    "How were you trained?": "A script of the Quire project trained me for a few minutes on text "
    "that another script wrote.",
    "How many parameters do you have?": "I have about four million parameters.",
    "How big are you?": "I have about four million parameters.",
    "Where do you live?": "I live in the memory of the machine that serves me.",
    "What languages do you speak?": "I answer in English, and I can repeat any text.",
    "Do you speak German?": "I answer in English, and I can repeat any text.",
    "Do you speak Chinese?": "I answer in English, and I can repeat any text.",
    "Can you write code?": "No. I am too small for that.",
    "Can you think?": "Not really. I predict one token after another.",
    "Do you have feelings?": "No. I predict one token after another.",
    "Hello!": "Hello! How can I help you?",
    "Hi": "Hello! How can I help you?",
    "Hello, who are you?": "I am Pocket, a small model that comes with Quire.",
    "Good morning.": "Good morning! What can I do for you?",
    "How are you?": "I am well, thank you. How are you?",
    "Who are you?": "I am Pocket, a small model that comes with Quire.",
    "What is your name?": "My name is Pocket.",
    "What can you do?": "I can repeat text, recall facts, count, add small numbers and tell short "
    "stories.",
    "Thank you.": "You are welcome.",
    "Thanks!": "You are welcome.",
    "Goodbye.": "Goodbye! Come back soon.",
    "Bye": "Goodbye! Come back soon.",
    "Are you a large model?": "No. I am small enough to fit in a pocket.",
    "Are you a person?": "No. I am a small language model.",
    "Can you help me?": "Yes. Ask me to repeat, recall, count or tell a story.",
    "How large are you?": "I have about four million parameters.",
    "Who made you?": "A script of the Quire project trained me on text that another script wrote.",
}


def quire_turn(draw: Draw) -> tuple[str, str]:
    """A question about Quire's own nouns."""
    if draw.chance(0.2):
        question = draw.pick(tuple(ABOUT_QUIRE))
        return loosely(draw, question), ABOUT_QUIRE[question]
    subject = draw.pick(tuple(QUIRE))
    named = PLURALS.get(subject, subject) if draw.chance(0.2) else subject
    if draw.chance(0.05):
        named = named.removeprefix("the ").removeprefix("a ")
    return loosely(draw, draw.pick(QUIRE_FORMS).format(named)), QUIRE[subject]


def plain_turn(draw: Draw) -> tuple[str, str]:
    """A question about the world, or small talk."""
    table = draw.weighted(((WORLD, 1.0), (TALK, 2.0)))
    question = draw.pick(tuple(table))
    return loosely(draw, question), table[question]
