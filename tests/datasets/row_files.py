"""Tiny files in the published layouts of the data sets that ship as rows: what each must be read as.

A case is (type of the row, files by their place in the cache, images by theirs, and by split: how many samples, and
what the first one has). Lists under a name that ends in .jsonl are written as lines.
"""

from __future__ import annotations

from typing import Any


def vqa_files(prefix: str, kind: str, images: tuple[int, int]) -> dict[str, Any]:
    """An official pair of questions and annotations files."""
    questions = [{"image_id": image, "question": f"What is it, {place}?", "question_id": 10 * image + place}
                 for place, image in enumerate(images)]
    notes = [{"question_id": row["question_id"], "image_id": row["image_id"], "answer_type": "other",
              "question_type": "what is", "answers": [{"answer": text, "answer_id": at, "answer_confidence": "yes"}
                                                      for at, text in enumerate(["kite", "kite", "bird"])]}
             for row in questions]
    return {f"{prefix}questions.json": {"data_subtype": kind, "questions": questions},
            f"{prefix}annotations.json": {"data_subtype": kind, "annotations": notes}}


def ok_vqa(kind: str, images: tuple[int, int]) -> dict[str, Any]:
    pair = vqa_files("", f"{kind}2014", images)
    return {f"okvqa/annotations/OpenEnded_mscoco_{kind}2014_questions.json": pair["questions.json"],
            f"okvqa/annotations/mscoco_{kind}2014_annotations.json": pair["annotations.json"]}


def aokvqa(split: str) -> dict[str, Any]:
    row = {"split": split, "image_id": 299207, "question_id": f"22Mex{split}", "question": "Why does he stand there?",
           "choices": ["bus", "rain", "friend", "dog"], "difficult_direct_answer": split == "val"}
    answered = {"correct_choice_idx": 2, "direct_answers": ["a friend", "friend", "friend"], "rationales": ["he waves"]}
    return {f"aokvqa/annotations/aokvqa_v1p0_{split}.json": [row if split == "test" else {**row, **answered}]}


def coco(split: str, named: str) -> dict[str, Any]:
    return {"images": [{"id": at, "file_name": f"{named}{at}.jpg", "open_images_id": f"{named}{at}", "coco_url": "",
                        "domain": domain} for at, domain in enumerate(["in-domain", "near-domain", "out-domain"])],
            "annotations": [{"id": 2 * at + k, "image_id": at, "caption": f"Thing {at}, told {k}."}
                            for at in range(3) for k in range(2)]}


KARPATHY = {"flickr30k/annotations/train.json": [{"image": "flickr30k-images/1.jpg", "caption": "A man runs.",
                                                  "image_id": 0}],
            "flickr30k/annotations/val.json": [{"image": "flickr30k-images/2.jpg", "caption": ["A dog.", "A pet."]}],
            "flickr30k/annotations/test.json": [{"image": "flickr30k-images/3.jpg", "caption": ["Two cats."]}]}


def textcaps(split: str, captioned: bool = True) -> dict[str, Any]:
    row = {"image_id": "f0" + split, "image_classes": ["Book"], "set_name": split, "image_width": 8}
    told = [{**row, "caption_id": at, "caption_str": f"A sign says {at}.", "reference_strs": ["x"]} for at in range(2)]
    return {f"textcaps/annotations/TextCaps_0.1_{split}.json": {"dataset_type": split, "data": told if captioned
                                                                else [row]}}


def textvqa(split: str) -> dict[str, Any]:
    rows = [{"image_id": "f0" + split, "question": f"What does it say, {at}?", "question_id": 30 + at,
             "set_name": split, "answers": ["stop", "stop", "shop"], "question_tokens": ["what"]} for at in range(2)]
    if split == "test":
        rows = [{key: value for key, value in row.items() if key != "answers"} for row in rows]
    tokens = [{"image_id": "f0" + split, "ocr_tokens": ["STOP", "HERE"], "ocr_info": [{"word": "STOP"}]},
              {"image_id": "another", "ocr_tokens": [], "ocr_info": []}]
    return {f"textvqa/annotations/TextVQA_0.5.1_{split}.json": {"dataset_name": "textvqa", "data": rows},
            f"textvqa/annotations/TextVQA_Rosetta_OCR_v0.2_{split}.json": {"data": tokens}}


def gqa(split: str) -> dict[str, Any]:
    row = {"semantic": [{"operation": "select"}], "entailed": ["05"], "imageId": "n16", "question": "Is it red?",
           "types": {"structural": "verify"}, "isBalanced": True}
    answered = {} if split == "test" else {"answer": "no", "fullAnswer": "No, it is blue."}
    return {f"gqa/annotations/{split}_balanced_questions.json": {"0293": {**row, **answered}}}


BOOKS = {"ocrvqa/annotations/dataset.json": {
    f"000{split}": {"imageURL": f"http://images.net/I/51.{end}", "title": "On Ships", "authorName": "A. Sail",
                    "split": split, "questions": ["Who wrote it?", "Is it a novel?"], "answers": ["A. Sail", "No"]}
    for split, end in ((1, "jpg"), (2, "gif"), (3, "jpg"))}}


def vizwiz(split: str) -> dict[str, Any]:
    row = {"image": f"VizWiz_{split}_00000001.jpg", "question": "What is in this can?"}
    answered = {"answers": [{"answer": "soup", "answer_confidence": "yes"},
                            {"answer": "unanswerable", "answer_confidence": "no"},
                            {"answer": "soup", "answer_confidence": "maybe"}], "answer_type": "other", "answerable": 1}
    return {f"vizwiz/annotations/{split}.json": [row if split == "test" else {**row, **answered}]}


LESSONS = {"scienceqa/problems.json": {
    str(number): {"question": "Which one floats?", "choices": ["cork", "stone"], "answer": 0, "hint": hint,
                  "image": image, "split": split, "task": "closed choice", "grade": "grade2", "lecture": "",
                  "subject": "natural science", "topic": "physics"}
    for number, (split, image, hint) in enumerate([("train", "image.png", "Look at the tub."), ("train", None, ""),
                                                   ("val", "image.png", ""), ("test", "image.png", "A tub.")], 1)}}


def icons(split: str) -> dict[str, Any]:
    row = {"question": "How likely is a black one?", "choices": ["certain", "impossible"], "answer": 1,
           "ques_type": "choose_txt", "grade": "grade1", "label": "S2"}
    return {f"iconqa/iconqa_data/iconqa/{split}/choose_txt/{name}/data.json": row for name in ("9", "10")}


def statements(file: str) -> dict[str, Any]:
    row = {"image": "000000372029.jpg", "image_link": "http://a.org/train2017/000000372029.jpg", "relation": "on",
           "caption": "The cat is on the sofa.", "label": 1, "subj": "cat", "obj": "sofa", "annotator_id": 4}
    return {f"vsr/zeroshot/{file}.jsonl": [row, {**row, "caption": "The cat is under the sofa.", "label": 0}]}


def memes(file: str) -> dict[str, Any]:
    return {f"hateful_memes/{file}.jsonl": [{"id": 42, "img": "img/42.png", "label": 0, "text": "monday again"},
                                            {"id": 43, "img": "img/43.png", "label": 1, "text": "go away"}]}


def visdial(split: str) -> dict[str, Any]:
    questions, answers = ["is it sunny", "any people", "what color is it"], ["yes", "no", "green", "2 of them"]
    options = list(range(4)) * 25
    rounds = [{"question": 0, "answer": 0, "answer_options": options, "gt_index": 4},
              {"question": 1, "answer": 3, "answer_options": options[::-1], "gt_index": 0},
              {"question": 2, "answer": 2, "answer_options": options, "gt_index": 2}]
    if split == "test":  # earlier rounds without options, the last one open
        rounds = [{"question": 0, "answer": 0}, {"question": 1, "answer_options": options}]
    dialog = {"image_id": 185, "caption": "a tree in a field", "dialog": rounds}
    return {f"visdial/annotations/visdial_1.0_{split}.json": {
        "version": "1.0", "split": split, "data": {"dialogs": [dialog], "questions": questions, "answers": answers}}}


def llava(file: str, turns: int) -> dict[str, Any]:
    said = [[{"from": "human", "value": "<image>\nWhat is she doing?" if at == 0 else f"And then, {at}?"},
             {"from": "gpt", "value": f"She reads; step {at}."}] for at in range(turns)]
    row = {"id": "0021", "image": "0021.jpg", "conversations": [turn for pair in said for turn in pair]}
    return {f"llava150k/{file}.json": [row]}


GENOME = [{"id": 61, "qas": [{"qa_id": 907, "image_id": 61, "question": "What is green?", "answer": "Grass."},
                             {"qa_id": 908, "image_id": 61, "question": "Who stands?", "answer": "A man."}]}]
RADIOLOGY = {f"vqa_rad/{split}set.json": [{"qid": 1, "image_name": "s1.jpg", "image_organ": "HEAD", "answer": "Yes",
                                           "answer_type": "CLOSED", "question_type": "PRES", "question": "Is it big?",
                                           "phrase_type": "freeform"}] for split in ("train", "test")}
COCO_OK = ["coco/images/train2014/COCO_train2014_000000000007.jpg", "coco/images/val2014/COCO_val2014_000000000008.jpg"]
COCO_17 = [f"coco/images/{split}2017/000000299207.jpg" for split in ("train", "val", "test")]
OPEN = ["textvqa/images/train_images/f0train.jpg", "textvqa/images/train_images/f0val.jpg",
        "textvqa/images/test_images/f0test.jpg"]
DIALOG_IMAGES = ["coco/images/val2014/COCO_val2014_000000000185.jpg",
                 "coco/images/VisualDialog_val2018/VisualDialog_val2018_000000000185.jpg",
                 "coco/images/VisualDialog_test2018/VisualDialog_test2018_000000000185.jpg"]
MEME_FILES = ("train", "dev_seen", "test_seen", "dev_unseen", "test_unseen")
SPLITS = ("train", "val", "test")
BOTH = ok_vqa("train", (7, 7)) | ok_vqa("val", (8, 8))
ALL_AOKVQA = aokvqa("train") | aokvqa("val") | aokvqa("test")
FOUR = ["bus", "rain", "friend", "dog"]

Case = tuple[str, dict[str, Any], list[str], dict[str, tuple[int, dict[str, Any]]]]
CASES: dict[str, Case] = {
    "nocaps": ("default", {"nocaps/annotations/nocaps_val_4500_captions.json": coco("val", "00a"),
                           "nocaps/annotations/nocaps_test_image_info.json": {"images": coco("test", "00b")["images"]}},
               [*(f"nocaps/images/val/00a{at}.jpg" for at in range(3)),
                *(f"nocaps/images/test/00b{at}.jpg" for at in range(3))],
               {"val": (3, {"image_id": 0, "text_input": "thing 0, told 0"}), "test": (3, {"image_id": 0}),
                "in_domain": (1, {"image_id": 0}), "near_domain": (1, {"image_id": 1}),
                "out_domain": (1, {"image_id": 2})}),
    "nocaps (lavis)": ("lavis", {**{f"nocaps/annotations/nocaps_{split}.json": [{"image": f"{split}/1.jpg",
                                                                                 "img_id": 2}] for split in SPLITS[1:]},
                                 "nocaps/annotations/nocaps_val_4500_captions.json": coco("val", "00a")},
                       ["nocaps/images/val/1.jpg", "nocaps/images/test/1.jpg"],
                       {"val": (1, {"image_id": 2, "text_input": "thing 2, told 0"}), "test": (1, {"image_id": 2})}),
    "flickr30k_caption": ("default", KARPATHY, [f"flickr30k/images/flickr30k-images/{at}.jpg" for at in (1, 2, 3)],
                          {"train": (1, {"text_input": "a man runs"}), "val": (1, {"text_input": "a dog"}),
                           "test": (1, {"image_id": 3})}),
    "textcaps_caption": ("default", textcaps("train") | textcaps("val") | textcaps("test", False), OPEN,
                         {"train": (2, {"text_input": "a sign says 0"}), "val": (1, {"text_input": "a sign says 0"}),
                          "test": (1, {})}),
    "textvqa": ("default", textvqa("train") | textvqa("val") | textvqa("test"), OPEN,
                {"train": (2, {"text_input": "what does it say, 0?", "ocr_tokens": ["STOP", "HERE"],
                               "text_output": "stop"}),
                 "val": (2, {"ocr_tokens": ["STOP", "HERE"], "question_id": 30}), "test": (2, {"question_id": 30})}),
    "ok_vqa": ("default", BOTH, COCO_OK, {"train": (2, {"answers": ["kite", "bird"], "text_output": "kite"}),
                                          "val": (2, {"question_id": 80, "image_id": 8})}),
    "aok_vqa": ("default", ALL_AOKVQA, COCO_17,
                {"train": (1, {"text_output": "friend", "answers": ["friend", "a friend"], "choices": FOUR}),
                 "val": (1, {"question_id": "22Mexval", "choices": FOUR}), "test": (1, {"image_id": 299207})}),
    "aok_vqa_mc": ("default", ALL_AOKVQA, COCO_17,
                   {"train": (1, {"text_output": "friend", "answers": ["friend"], "choices": FOUR}),
                    "val": (1, {"candidates": FOUR, "label": 2, "choices": FOUR}), "test": (1, {"candidates": FOUR})}),
    "gqa": ("default", {path: content for split in (*SPLITS, "testdev") for path, content in gqa(split).items()},
            ["gqa/images/n16.jpg"],
            {"train": (1, {"text_output": "no"}), "val": (1, {"question_id": "0293", "image_id": "n16"}),
             "testdev": (1, {"text_input": "is it red?"}), "test": (1, {})}),
    "ocr_vqa": ("default", BOOKS, ["ocrvqa/images/0001.jpg", "ocrvqa/images/0002.gif", "ocrvqa/images/0003.jpg"],
                {"train": (2, {"text_input": "who wrote it?", "text_output": "A. Sail", "question_id": 0}),
                 "val": (2, {"image_id": "0002"}), "test": (2, {"image_id": "0003"})}),
    "vizwiz_vqa": ("default", vizwiz("train") | vizwiz("val") | vizwiz("test"),
                   [f"vizwiz/images/{split}/VizWiz_{split}_00000001.jpg" for split in SPLITS],
                   {"train": (1, {"answers": ["soup", "unanswerable"]}), "val": (1, {"question_id": 0}),
                    "test": (1, {"text_input": "what is in this can?"})}),
    "scienceqa": ("default", LESSONS, [f"scienceqa/images/{split}/{at}/image.png" for split, at in
                                       (("train", 1), ("val", 3), ("test", 4))],
                  {"train": (1, {"text_output": "cork", "context": "Look at the tub.", "choices": ["cork", "stone"]}),
                   "val": (1, {"context": "", "candidates": ["cork", "stone"], "label": 0, "question_id": "3"}),
                   "test": (1, {"context": "A tub.", "label": 0})}),
    "iconqa": ("default", icons("train") | icons("val") | icons("test"),
               [f"iconqa/iconqa_data/iconqa/{split}/choose_txt/{at}/image.png" for split in SPLITS for at in (9, 10)],
               {"train": (2, {"text_output": "impossible", "question_id": "9"}),
                "val": (2, {"candidates": ["certain", "impossible"], "label": 1}), "test": (2, {"label": 1})}),
    "vsr_classification": ("default", statements("train") | statements("dev") | statements("test"),
                           ["vsr/images/000000372029.jpg"],
                           {"train": (2, {"text_input": "the cat is on the sofa", "text_output": "true"}),
                            "val": (2, {"candidates": ["false", "true"], "label": 1}), "test": (2, {"label": 1})}),
    "hatefulmemes": ("default", {path: content for file in MEME_FILES for path, content in memes(file).items()},
                     ["hateful_memes/img/42.png", "hateful_memes/img/43.png"],
                     {"train": (2, {"text_input": "monday again", "text_output": "no", "question_id": 42}),
                      "val": (2, {"candidates": ["no", "yes"], "label": 0}), "test": (2, {"label": 0}),
                      "val_unseen": (2, {"label": 0}), "test_unseen": (2, {"label": 0})}),
    "visdial": ("default", visdial("train") | visdial("val") | visdial("test"), DIALOG_IMAGES,
                {"train": (3, {"text_input": "is it sunny?", "text_output": "yes",
                               "caption": "a tree in a field"}),
                 "val": (3, {"label": 4, "candidates": ["yes", "no", "green", "2 of them"] * 25, "image_id": 185,
                             "question_id": "185-1"}),
                 "test": (1, {"history": "Q: is it sunny? A: yes", "question_id": "185-2"})}),
    "vg_vqa": ("default", {"vg/annotations/vg_qa.json": [{"image": "VG_100K/61.jpg", "question": "What is green?",
                                                          "answer": "Grass.", "dataset": "vg"}]},
               ["vg/images/VG_100K/61.jpg"], {"train": (1, {"text_output": "Grass.", "answers": ["Grass."]})}),
    "vg_vqa (official)": ("official", {"vg/annotations/question_answers.json": GENOME}, ["vg/images/VG_100K_2/61.jpg"],
                          {"train": (2, {"text_input": "what is green?", "question_id": 907})}),
    "llava150k_dialogue": ("default", llava("conversation_58k", 3), ["coco/images/train2017/0021.jpg"],
                           {"train": (3, {"text_input": "What is she doing?",
                                          "text_output": "She reads; step 0."})}),
    "llava150k_detail": ("default", llava("detail_23k", 1), ["coco/images/train2017/0021.jpg"],
                         {"train": (1, {"text_output": "She reads; step 0."})}),
    "llava150k_reasoning": ("default", llava("complex_reasoning_77k", 1), ["coco/images/train2017/0021.jpg"],
                            {"train": (1, {"text_input": "What is she doing?"})}),
    "vqa_rad": ("default", RADIOLOGY, ["vqa_rad/images/s1.jpg"],
                {"train": (1, {"text_output": "Yes"}), "test": (1, {"question_id": 1})}),
    "okvqa_vqg": ("default", BOTH, COCO_OK, {"train": (2, {"text_input": "kite", "text_output": "what is it, 0?"}),
                                             "val": (2, {"text_input": "kite"})}),
    "aokvqa_vqg": ("default", ALL_AOKVQA, COCO_17, {"train": (1, {"text_input": "friend"}),
                                                    "val": (1, {"text_input": "friend"})}),
}
TWINS: dict[str, str] = {
    "nocaps": "A short image description:", "flickr30k_caption": "A short image description:",
    "textvqa": "OCR tokens: STOP, HERE. Question: what does it say, 0? Short answer:",
    "ok_vqa": "Question: what is it, 0? Short answer:",
    "aok_vqa_mc": "Question: why does he stand there? Options: (a) bus (b) rain (c) friend (d) dog. Answer:",
    "scienceqa": "Question: Which one floats? Options: (a) cork (b) stone. Answer:",
    "iconqa": "Question: how likely is a black one? Options: (a) certain (b) impossible. Short answer:",
    "vsr_classification": 'Based on the image, is this statement true or false? "the cat is on the sofa" Answer:',
    "hatefulmemes": 'This is an image with: "monday again" written on it. Is it hateful? Answer:',
    "visdial": "Question: is it sunny? Short answer:", "gqa": "Question: is it red? Short answer:",
    "okvqa_vqg": "Given the image, generate a question whose answer is: kite. Question:",
}
"""row -> what its twin *_instruct asks of the first sample of val"""
