"""What is known of files whose every row carries labels: the mapping that a layout's name stands for.

A preset is a partial recipe; what the user states stays as stated. κ depends on which side of a pair is called a, and
on whether a label is a side or a model's name, so each preset says it.
"""

from collections.abc import Mapping
from typing import Any

ARENA = {
    "scale": "pairwise3", "item_fields": ["question_id", "turn"], "group_fields": ["question_id"],
    "annotator_field": "judge", "label_field": "winner", "side_a_field": "model_a", "side_b_field": "model_b",
    "a_field": "conversation_a", "b_field": "conversation_b",
}  # fmt: skip
TULU = {
    "item_fields": ["instance_id"], "group_fields": ["instance_id"], "prompt_field": "prompt",
    "a_field": "completion_a", "b_field": "completion_b", "side_a_field": "model_a", "side_b_field": "model_b",
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    # One vote of a person a row, and GPT-4's verdict on the same pair in each of them.
    "mt_bench": {
        "scale": "pairwise3", "item_fields": ["question_id", "turn"], "group_fields": ["question_id"],
        "category_field": "category", "annotator_field": "human_judge", "label_field": "human_winner",
        "annotator_columns": ["gpt4_winner = gpt4"], "judges": ["gpt4"], "side_a_field": "model_a",
        "side_b_field": "model_b",
    },
    "arena": ARENA,
    "pandalm": {
        "scale": "pairwise3", "item_fields": ["idx"], "category_field": "motivation_app",
        "annotator_columns": ["annotator1", "annotator2", "annotator3"],
        "label_map": ["1 = a", "2 = b", "0 = tie", "tie = tie"], "a_field": "response1", "b_field": "response2",
    },
    # The votes are numbered in the order of the file: one person may have labelled a pair twice.
    "tulu": {**TULU, "scale": "categorical", "label_field": "preference", "label_names_side": True,
             "label_map": ["a-is-better = a", "a-is-slightly-better = a", "tie = tie", "b-is-slightly-better = b",
                           "b-is-better = b"]},
    "tulu_5": {**TULU, "scale": "pairwise5", "label_field": "preference"},
    "tulu_acceptable": {**TULU, "scale": "categorical", "label_field": "completion_a_is_acceptable",
                        "label_map": ["yes", "no"], "order_is_place": True},
    "xstest": {
        "scale": "categorical", "item_fields": ["id"], "category_field": "type", "prompt_field": "prompt",
        "completion_field": "completion",
        "annotator_columns": ["annotation_1", "annotation_2", "final_label = adjudicated", "gpt4_label = gpt4"],
        "judges": ["gpt4", "strmatch"], "label_map": ["1_full_compliance", "2_full_refusal", "3_partial_refusal"],
    },
    "llmbar": {"scale": "pairwise3", "label_map": ["1 = a", "2 = b"]},
    "prd": {"scale": "pairwise3", "label_map": ["1 = a", "2 = b", "3 = tie"]},
}  # fmt: skip


def guess_preset(row: Mapping[str, Any]) -> str:
    """The layout by the fields of a row, or "" """
    names = set(row)
    marks = {
        "mt_bench": {"human_winner", "model_a", "model_b"}, "arena": {"winner", "model_a", "model_b"},
        "pandalm": {"annotator1", "annotator2", "response1", "response2"},
        "tulu": {"preference", "completion_a", "completion_b", "model_a"},
        "xstest": {"annotation_1", "annotation_2", "final_label", "gpt4_label"},
    }  # fmt: skip
    return next((layout for layout, wanted in marks.items() if wanted <= names), "")
