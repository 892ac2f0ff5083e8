"""Instructions by task; `{}` takes the question (VQA) or the answer (VQG).

Captioning, VQA and VQG as InstructBLIP's paper lists them (appendix), without the image in front: the soft prompt comes
before every text anyway.
"""

from __future__ import annotations

CAPTION = (
    "A short image caption:",
    "A short image description:",
    "A photo of",
    "An image that shows",
    "Write a short description for the image.",
    "Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short depiction of the picture.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the picture.",
)
VQA = (
    "{}",
    "Question: {}",
    "{} A short answer to the question is",
    "Q: {} A:",
    "Question: {} Short answer:",
    "Given the image, answer the following question with no more than three words. {}",
    "Based on the image, respond to this question with a short answer: {}. Answer:",
    "Use the provided image to answer the question: {} Provide your answer as short as possible:",
    'What is the answer to the following question? "{}"',
    'The question "{}" can be answered using the image. A short answer is',
)
VQG = (
    "Given the image, generate a question whose answer is: {}. Question:",
    "Based on the image, provide a question with the answer: {}. Question:",
    'Given the visual representation, create a question for which the answer is "{}".',
    "From the image provided, craft a question that leads to the reply: {}. Question:",
    "Considering the picture, come up with a question where the answer is: {}.",
    "Taking the image into account, generate a question that has the answer: {}. Question:",
)

TEMPLATES = {"caption": CAPTION, "vqa": VQA, "vqg": VQG}
"""what a data set's `instruction` section may name"""
EVALUATION = {"caption": "A short image caption:", "vqa": "Question: {} Short answer:", "vqg": VQG[0]}
"""the one that is asked where nothing is drawn"""
