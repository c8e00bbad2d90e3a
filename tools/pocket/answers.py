"""Questions with fixed answers: about Quire, about the world, and small talk.

Invariant: each answer is one or two plain sentences, and each question form names its subject.
"""

from __future__ import annotations

from draw import Draw

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
QUIRE_FORMS = (
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

TALK = {
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
    subject = draw.pick(tuple(QUIRE))
    return draw.pick(QUIRE_FORMS).format(subject), QUIRE[subject]


def plain_turn(draw: Draw) -> tuple[str, str]:
    """A question about the world, or small talk."""
    table = draw.pick((WORLD, TALK))
    question = draw.pick(tuple(table))
    return question, table[question]
